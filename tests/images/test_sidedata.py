"""What a file holds beside its pixels comes along, or its loss is said."""

from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
import pytest
from picture_files import file_of
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from earl_cli.images.image_file import ImageFile, open_picture, save_picture
from earl_cli.images.sidedata import SideData

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


def saved(picture: ImageFile, kind: str, **metadata: str) -> tuple[ImageFile, tuple[str, ...]]:
    stream = io.BytesIO()
    lost = save_picture(picture.pixels, stream, like=picture, format=kind, metadata=metadata)
    return open_picture(stream.getvalue()), lost


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
    again, lost = saved(open_picture(data), target)
    assert (again.side.xmp, again.side.icc) == (XMP, profile)
    kept = Image.Exif()
    kept.load(again.side.exif or b"")
    assert kept[0x010F] == "A maker"
    assert lost == ()


@pytest.mark.parametrize("source", ["PNG", "JPEG", "TIFF", "BMP"])
@pytest.mark.parametrize("target", ["PNG", "JPEG", "WEBP"])
def test_resolution_is_kept(source: str, target: str) -> None:
    again, lost = saved(open_picture(file_of(RGB, source, dpi=(300, 150))), target)
    if target == "WEBP":
        kept = Image.Exif()
        kept.load(again.side.exif or b"")
        found = kept[0x011A], kept[0x011B]
    else:
        assert again.side.dpi is not None
        found = again.side.dpi
    assert found == pytest.approx((300, 150), rel=1e-3)
    assert lost == ()


def test_resolution_is_turned_with_the_picture_and_never_made_up() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_picture(file_of(RGB, "JPEG", dpi=(300, 150), exif=exif)).side.dpi == (150, 300)
    exif[0x0112], exif[0x010F] = 1, "A maker"
    assert open_picture(file_of(RGB, "JPEG", exif=exif)).side.dpi is None


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_xmp_says_nothing_of_the_old_file(kind: str) -> None:
    picture = open_picture(file_of(RGB, "JPEG", xmp=STALE))
    again, lost = saved(picture, kind)
    assert again.side.xmp is not None
    text = again.side.xmp.decode()
    for kept in ('xmp:Rating="4"', 'tiff:Make="A maker"', "<xmp:Label>kept</xmp:Label>"):
        assert kept in text
    for gone in ("Orientation", "hdrgm", "MotionPhoto", "Thumbnails"):
        assert gone not in text
    assert any("gain map" in note for note in lost)
    assert any("film" in note for note in lost)


@pytest.mark.parametrize("xmp", [b"<no end", b"\xff\xfe\0", b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', DEEP])
def test_damaged_xmp_is_left_out_with_a_note(xmp: bytes) -> None:
    again, lost = saved(open_picture(file_of(RGB, "JPEG", xmp=xmp)), "JPEG")
    assert again.side.xmp is None
    assert lost == ("the XMP block is damaged: left out",)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_damaged_exif_is_left_out(kind: str) -> None:
    for exif in (b"Exif\0\0junk", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 40):
        picture = open_picture(file_of(RGB, kind, exif=exif))
        assert picture.rgb.size == RGB.size
        again, lost = saved(picture, "JPEG")
        assert again.side.exif is None
        assert lost == ("the EXIF block is damaged: left out",)


def test_xmp_that_a_jpeg_cannot_hold_is_left_out_with_a_note() -> None:
    picture = open_picture(file_of(RGB, "WEBP", xmp=XMP + b" " * 70_000))
    assert saved(picture, "PNG")[0].side.xmp is not None
    again, lost = saved(picture, "JPEG")
    assert again.side.xmp is None
    assert lost == ("the XMP block is larger than a JPEG can hold: left out",)


def test_a_second_picture_in_the_file_is_lost_with_a_note() -> None:
    data = file_of(RGB, "MPO", save_all=True, append_images=[RGB.convert("L").convert("RGB")])
    picture = open_picture(data)
    assert (picture.format, picture.notes) == ("JPEG", ())
    assert np.array_equal(np.asarray(picture.rgb), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    _, lost = saved(picture, "JPEG")
    assert "second picture" in lost[0]
    ultra_hdr = file_of(RGB, "MPO", save_all=True, append_images=[RGB], xmp=STALE)
    assert "gain map" in saved(open_picture(ultra_hdr), "JPEG")[1][0]


def test_iptc_and_comments_stay_in_a_jpeg_and_are_missed_elsewhere() -> None:
    iptc = b"\x1c\x02\x78\x00\x05hello"
    block = b"Photoshop 3.0\x008BIM\x04\x04\0\0" + len(iptc).to_bytes(4) + iptc
    segment = b"\xff\xed" + (len(block) + 2).to_bytes(2) + block
    picture = open_picture(file_of(RGB, "JPEG", extra=segment, comment=b"by hand"))
    again, lost = saved(picture, "JPEG")
    assert (again.side.iptc, again.side.comment, lost) == (iptc, b"by hand", ())
    again, lost = saved(picture, "PNG")
    assert dict(again.side.texts) == {"Comment": "by hand"}
    assert ["IPTC" in note for note in lost] == [True]
    _, lost = saved(picture, "WEBP")
    assert any("comment" in note for note in lost)


def test_texts_of_a_png_stay_and_those_of_the_last_edit_replace_an_earlier_ones() -> None:
    first, _ = saved(open_picture(file_of(RGB)), "PNG", instruction="mach es schneeig ❄", seed="3")
    picture, _ = saved(first, "PNG", Author="Ä. Author", instruction="make it night")
    assert dict(picture.side.texts) == {"instruction": "make it night", "seed": "3", "Author": "Ä. Author"}
    again, lost = saved(picture, "PNG", instruction="make it warmer", seed="4")
    assert dict(again.side.texts) == {"instruction": "make it warmer", "seed": "4", "Author": "Ä. Author"}
    assert lost == ()
    _, lost = saved(picture, "JPEG", instruction="make it warmer", seed="4")
    assert lost == ("text blocks have no place in a JPEG: Author left out",)


def test_pixels_alone_are_saved_alone() -> None:
    lab = ImageCms.createProfile("LAB")
    image = ImageCms.profileToProfile(RGB, ImageCms.createProfile("sRGB"), lab, outputMode="LAB")
    assert image is not None
    profile = ImageCms.ImageCmsProfile(lab).tobytes()
    for data in (file_of(image, "TIFF", icc_profile=profile), file_of(RGB, "JPEG", comment=b"old", dpi=(300, 300))):
        for kind in ("PNG", "JPEG", "WEBP"):
            stream = io.BytesIO()
            save_picture(open_picture(data).rgb, stream, format=kind)
            assert open_picture(stream.getvalue()).side == SideData()


def test_losses_of_each_kind_are_said_once() -> None:
    picture = open_picture(file_of(RGB, "JPEG", xmp=STALE))
    _, lost = saved(picture, "WEBP")
    assert all(one != other for one, other in pairwise(sorted(lost)))
