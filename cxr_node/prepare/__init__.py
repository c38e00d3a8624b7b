"""From an instance to display pixels, and to the network image."""
