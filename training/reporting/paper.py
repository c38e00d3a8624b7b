"""The figures that the paper reports. Values that it shows only in a plot are None."""

from __future__ import annotations

IOU = 0.925
"""Section IV-C.1."""

ORIGINAL = {
    "healthy": (0.881, 0.974, 0.925),
    "bacterial_pneumonia": (0.87, 0.838, 0.854),
    "viral_pneumonia": (0.686, 0.655, 0.67),
    "covid19_pneumonia": (0.985, 0.985, 0.985),
}
"""Table I, ResNet-50 on original images: precision, recall, F1."""

SEGMENTED = {
    "healthy": (0.925, 0.967, 0.946),
    "bacterial_pneumonia": (0.891, 0.868, 0.879),
    "viral_pneumonia": (0.748, 0.745, 0.747),
    "covid19_pneumonia": (0.985, 0.992, 0.989),
}
"""Table I, ResNet-50 on lung-segmented images."""

ACCURACY = {"original": 0.847, "segmented": 0.879}
"""Table I."""

AOPPC = {"saliency": 0.629, "gradcam": 0.868, "cxrnet": 0.903}
"""Section IV-C.3 and figure 13."""

CONFUSION = (
    ("COVID-19 called COVID-19, original images", 128, 130),
    ("COVID-19 called COVID-19, lung-segmented images", 129, 130),
    ("bacterial called viral, lung-segmented images", 61, 537),
    ("viral called bacterial, lung-segmented images", 54, 267),
)
"""The entries of figure 11 that section IV-C.2 gives as text."""

ENCODERS = {
    "alexnet": ("AlexNet", None),
    "vgg16": ("VGG-16", None),
    "vgg19": ("VGG-19", None),
    "resnet34": ("ResNet-34", None),
    "resnet50": ("ResNet-50", ACCURACY["original"]),
    "inception_v3": ("Inception-V3", None),
}
"""Figure 9: name and accuracy on original images, as far as the text gives it."""
