"""QGIS styles of a map's rasters. QGIS loads `class.qml` by itself when it opens `class.tif` of the same folder."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from mibf.bundle.classes import ClassName
from pipeline.maps.products import CLASS_PRODUCTS, Product

#: The end of a style's file name; the rest is that of the raster.
STYLE = ".qml"
#: Colours of fractions from 0 to 1, in equal steps: matplotlib's colour map "viridis", which is legible without colour, too.
_RAMP = ("#440154", "#3b528b", "#21918c", "#5ec962", "#fde725")
_DOCTYPE = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"


def qgis_style(product: Product, classes: Sequence[ClassName]) -> bytes | None:
    """Return the style of a product, or None where QGIS's own choice is as good: classes and confidence have styles."""
    if product.name in CLASS_PRODUCTS:
        return _style(_class_renderer(classes))
    return _style(_fraction_renderer()) if product.name == "confidence" else None


def _class_renderer(classes: Sequence[ClassName]) -> Element:
    """Each class with its name and colour; other values are transparent."""
    renderer = Element("rasterrenderer", type="paletted", band="1", opacity="1", alphaBand="-1", nodataColor="")
    palette = SubElement(renderer, "colorPalette")
    for c in classes:
        SubElement(palette, "paletteEntry", value=str(c.id), color=c.color, label=c.name, alpha="255")
    return renderer


def _fraction_renderer() -> Element:
    """A ramp from 0 to 1. QGIS applies the scale of a file's codes, so that it does not depend on the data type."""
    limits = {"minimumValue": "0", "maximumValue": "1"}
    renderer = Element(
        "rasterrenderer",
        {"classificationMin": "0", "classificationMax": "1"},
        type="singlebandpseudocolor",
        band="1",
        opacity="1",
        alphaBand="-1",
        nodataColor="",
    )
    shader = SubElement(
        SubElement(renderer, "rastershader"),
        "colorrampshader",
        limits,
        colorRampType="INTERPOLATED",
        classificationMode="1",
        clip="0",
    )
    for number, color in enumerate(_RAMP):
        value = f"{number / (len(_RAMP) - 1):g}"
        SubElement(shader, "item", value=value, color=color, label=value, alpha="255")
    return renderer


def _style(renderer: Element) -> bytes:
    root = Element("qgis", version="3.16", styleCategories="Symbology")
    SubElement(root, "pipe").append(renderer)
    ElementTree.indent(root, " ")
    return (_DOCTYPE + ElementTree.tostring(root, "unicode") + "\n").encode()
