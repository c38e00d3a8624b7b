"""A DICOM node that analyses chest radiographs and returns overlays and reports."""
