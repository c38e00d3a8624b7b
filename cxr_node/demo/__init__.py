"""The demonstration: an emulated modality, a phantom, real samples, a small PACS."""
