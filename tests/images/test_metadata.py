"""What a file holds beside its pixels comes along, or its loss is said."""

from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
import pytest
from image_files import file_of
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from earl_cli.images.image_file import ImageFile, open_image, save_image
from earl_cli.images.metadata import ImageMetadata

RGB = Image.fromarray(np.arange(12 * 16 * 3, dtype=np.uint32).reshape(12, 16, 3).astype(np.uint8))
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="4"/></rdf:RDF></x:xmpmeta>'
)
STALE = XMP.replace(
    b'xmp:Rating="4"/>',
    b'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/"'
    b' xmlns:GCamera="http://ns.google.com/photos/1.0/camera/" xmlns:xmpGImg="http://ns.adobe.com/xap/1.0/g/img/"'
    b' xmp:Rating="4" tiff:Orientation="6" tiff:Make="A maker" hdrgm:Version="1.0" GCamera:MotionPhoto="1">'
    b"<xmp:Thumbnails><xmpGImg:image>old</xmpGImg:image></xmp:Thumbnails><xmp:Label>kept</xmp:Label></rdf:Description>",
)
DEEP = b"<Orientation>" * 2000 + b"</Orientation>" * 2000


def saved(opened: ImageFile, kind: str, **metadata: str) -> tuple[ImageFile, tuple[str, ...]]:
    stream = io.BytesIO()
    lost = save_image(opened.pixels, stream, like=opened, format=kind, texts=metadata)
    return open_image(stream.getvalue()), lost


@pytest.mark.parametrize("source", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("target", ["PNG", "JPEG", "WEBP"])
def test_profile_exif_and_xmp_go_from_any_format_to_any(source: str, target: str) -> None:
    exif = Image.Exif()
    exif[0x010F] = "A maker"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    if source == "TIFF":
        exif[700] = XMP
    chunks = PngInfo()
    chunks.add_itxt("XML:com.adobe.xmp", XMP, zip=True)
    data = file_of(RGB, source, exif=exif, icc_profile=profile, xmp=XMP, pnginfo=chunks)
    again, lost = saved(open_image(data), target)
    assert (again.metadata.xmp, again.metadata.icc) == (XMP, profile)
    kept = Image.Exif()
    kept.load(again.metadata.exif or b"")
    assert kept[0x010F] == "A maker"
    assert lost == ()


@pytest.mark.parametrize("source", ["PNG", "JPEG", "TIFF", "BMP"])
@pytest.mark.parametrize("target", ["PNG", "JPEG", "WEBP"])
def test_resolution_is_kept(source: str, target: str) -> None:
    again, lost = saved(open_image(file_of(RGB, source, dpi=(300, 150))), target)
    if target == "WEBP":
        kept = Image.Exif()
        kept.load(again.metadata.exif or b"")
        found = kept[0x011A], kept[0x011B]
    else:
        assert again.metadata.dpi is not None
        found = again.metadata.dpi
    assert found == pytest.approx((300, 150), rel=1e-3)
    assert lost == ()


def test_resolution_is_turned_with_the_image_and_never_made_up() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_image(file_of(RGB, "JPEG", dpi=(300, 150), exif=exif)).metadata.dpi == (150, 300)
    exif[0x0112], exif[0x010F] = 1, "A maker"
    assert open_image(file_of(RGB, "JPEG", exif=exif)).metadata.dpi is None


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_xmp_about_the_old_file_is_removed(kind: str) -> None:
    opened = open_image(file_of(RGB, "JPEG", xmp=STALE))
    again, lost = saved(opened, kind)
    assert again.metadata.xmp is not None
    text = again.metadata.xmp.decode()
    for kept in ('xmp:Rating="4"', 'tiff:Make="A maker"', "<xmp:Label>kept</xmp:Label>"):
        assert kept in text
    for gone in ("Orientation", "hdrgm", "MotionPhoto", "Thumbnails"):
        assert gone not in text
    assert any("gain map" in note for note in lost)
    assert any("video" in note for note in lost)


@pytest.mark.parametrize("xmp", [b"<no end", b"\xff\xfe\0", b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', DEEP])
def test_damaged_xmp_is_left_out_with_a_note(xmp: bytes) -> None:
    again, lost = saved(open_image(file_of(RGB, "JPEG", xmp=xmp)), "JPEG")
    assert again.metadata.xmp is None
    assert lost == ("the XMP block is damaged: left out",)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_damaged_exif_is_left_out(kind: str) -> None:
    for exif in (b"Exif\0\0junk", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 40):
        opened = open_image(file_of(RGB, kind, exif=exif))
        assert opened.rgb.size == RGB.size
        again, lost = saved(opened, "JPEG")
        assert again.metadata.exif is None
        assert lost == ("the EXIF block is damaged: left out",)


def test_xmp_that_a_jpeg_cannot_hold_is_left_out_with_a_note() -> None:
    opened = open_image(file_of(RGB, "WEBP", xmp=XMP + b" " * 70_000))
    assert saved(opened, "PNG")[0].metadata.xmp is not None
    again, lost = saved(opened, "JPEG")
    assert again.metadata.xmp is None
    assert lost == ("the XMP block is larger than a JPEG can hold: left out",)


def test_a_second_image_in_the_file_is_lost_with_a_note() -> None:
    data = file_of(RGB, "MPO", save_all=True, append_images=[RGB.convert("L").convert("RGB")])
    opened = open_image(data)
    assert (opened.format, opened.notes) == ("JPEG", ())
    assert np.array_equal(np.asarray(opened.rgb), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    _, lost = saved(opened, "JPEG")
    assert "second image" in lost[0]
    ultra_hdr = file_of(RGB, "MPO", save_all=True, append_images=[RGB], xmp=STALE)
    assert "gain map" in saved(open_image(ultra_hdr), "JPEG")[1][0]


def test_iptc_and_comments_are_kept_in_a_jpeg_and_lost_elsewhere() -> None:
    iptc = b"\x1c\x02\x78\x00\x05hello"
    block = b"Photoshop 3.0\x008BIM\x04\x04\0\0" + len(iptc).to_bytes(4) + iptc
    segment = b"\xff\xed" + (len(block) + 2).to_bytes(2) + block
    opened = open_image(file_of(RGB, "JPEG", extra=segment, comment=b"by hand"))
    again, lost = saved(opened, "JPEG")
    assert (again.metadata.iptc, again.metadata.comment, lost) == (iptc, b"by hand", ())
    again, lost = saved(opened, "PNG")
    assert dict(again.metadata.texts) == {"Comment": "by hand"}
    assert ["IPTC" in note for note in lost] == [True]
    _, lost = saved(opened, "WEBP")
    assert any("comment" in note for note in lost)


def test_texts_of_a_png_stay_and_those_of_the_last_edit_replace_an_earlier_ones() -> None:
    first, _ = saved(open_image(file_of(RGB)), "PNG", instruction="mach es schneeig ❄", seed="3")
    opened, _ = saved(first, "PNG", Author="Ä. Author", instruction="make it night")
    assert dict(opened.metadata.texts) == {"instruction": "make it night", "seed": "3", "Author": "Ä. Author"}
    again, lost = saved(opened, "PNG", instruction="make it warmer", seed="4")
    assert dict(again.metadata.texts) == {"instruction": "make it warmer", "seed": "4", "Author": "Ä. Author"}
    assert lost == ()
    _, lost = saved(opened, "JPEG", instruction="make it warmer", seed="4")
    assert lost == ("text chunks have no place in a JPEG: Author left out",)


def test_pixels_alone_are_saved_alone() -> None:
    lab = ImageCms.createProfile("LAB")
    image = ImageCms.profileToProfile(RGB, ImageCms.createProfile("sRGB"), lab, outputMode="LAB")
    assert image is not None
    profile = ImageCms.ImageCmsProfile(lab).tobytes()
    for data in (file_of(image, "TIFF", icc_profile=profile), file_of(RGB, "JPEG", comment=b"old", dpi=(300, 300))):
        for kind in ("PNG", "JPEG", "WEBP"):
            stream = io.BytesIO()
            save_image(open_image(data).rgb, stream, format=kind)
            assert open_image(stream.getvalue()).metadata == ImageMetadata()


def test_each_kind_of_loss_is_reported_once() -> None:
    opened = open_image(file_of(RGB, "JPEG", xmp=STALE))
    _, lost = saved(opened, "WEBP")
    assert all(one != other for one, other in pairwise(sorted(lost)))
