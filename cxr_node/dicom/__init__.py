"""DICOM code that receive, deliver and other roles share: association items, UIDs, references, files, TLS."""
