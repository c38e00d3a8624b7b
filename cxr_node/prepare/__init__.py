"""From an instance to pixels as a reader sees them, and to the image that the networks see."""
