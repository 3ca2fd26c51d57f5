"""Unusual, damaged and malicious inputs with their expected results, for `test_troublesome.py`.

- `IMAGES` and `MASKS`: contents of files.
- `NAMES` and `FOLDERS`: names of files, and other content of a folder.
- `MEMBERS` and `SAMPLES`: members of a tar and samples of a shard; `TARS`: damage to a tar.

A result (`Fate`) is the size (width, height) of an accepted image, the reason for rejecting it, or None if it is no
input. A source with a damaged tar or an unreadable folder is refused with a text.
"""

import io
import json
import os
import socket
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

Fate = tuple[int, int] | str | None

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (16, 24, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (16, 24, 4)).astype(np.uint16)
FLOAT = RNG.random((16, 24)).astype(np.float32)
INDICES = RNG.integers(0, 2, (16, 24), dtype=np.uint8)
RGB, TURNED = Image.fromarray(NOISE), Image.fromarray(NOISE[::-1])
WIDE, TALL = (24, 16), (16, 24)
NO_IMAGE, TOO_MANY = "not a readable image: known are JPEG", "the image has too many pixels: "
UNDECODED, TRUNCATED = "the image cannot be decoded: ", "the image cannot be decoded: image file is truncated"


def encoded(image: Image.Image | np.ndarray, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image = image.copy() if isinstance(image, Image.Image) else Image.fromarray(image)  # a save leaves options behind
    image.save(buffer, form, **options)
    return buffer.getvalue()


def edited(data: bytes, at: int, new: bytes) -> bytes:
    """Replace bytes of `data` at one position."""
    return data[:at] + new + data[at + len(new) :]


def flipped(data: bytes, at: int) -> bytes:
    """`data` with one bit changed."""
    return edited(data, at, bytes([data[at] ^ 16]))


def exif(kind: int, value: bytes) -> bytes:
    """EXIF that holds nothing but an orientation, of any type."""
    place, rest = (value.ljust(4, b"\0"), b"") if len(value) <= 4 else (struct.pack("<I", 26), value)
    return b"Exif\0\0II*\0" + struct.pack("<IHHHI", 8, 1, 0x0112, kind, 1) + place + bytes(4) + rest


def oriented(number: int) -> bytes:
    return encoded(RGB, "JPEG", exif=exif(3, struct.pack("<H", number)))


def png(width: int, height: int, *more: tuple[bytes, bytes], pixels: bytes = b"", interlaced: int = 0) -> bytes:
    """A PNG that may promise more than it holds, with `more` chunks."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, interlaced)
    chunks = ((b"IHDR", header), *more, (b"IDAT", zlib.compress(pixels)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def jpeg(width: int, height: int, scans: int) -> bytes:
    """A progressive JPEG whose scans are empty: each costs a pass over all pixels, and eleven bytes."""

    def segment(marker: int, data: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data

    tables = [segment(0xC4, bytes([kind, 1]) + bytes(15) + value) for kind, value in ((0, b"\0"), (16, b"\xe0"))]
    frame = segment(0xC2, struct.pack(">BHHB", 8, height, width, 1) + b"\1\x11\0")
    first, more = (segment(0xDA, b"\1\1\0" + spectrum + b"\0") + b"\0" for spectrum in (b"\0\0", b"\1\x3f"))
    quantization = segment(0xDB, b"\0" + b"\1" * 64)
    return b"\xff\xd8" + quantization + frame + b"".join(tables) + first + more * (scans - 1) + b"\xff\xd9"


def tiff(width: int, height: int, tile: tuple[int, int]) -> bytes:
    """A gray TIFF in one black tile."""
    data = zlib.compress(bytes(min(tile[0] * tile[1], 10**6)))
    tags = {256: width, 257: height, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile[0], 323: tile[1], 325: len(data)}
    tags[324] = 8 + 2 + 12 * (len(tags) + 1) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


def vast(data: bytes, tag: int) -> bytes:
    """A TIFF of Pillow's with one of its tags at 100,000."""
    (place,) = struct.unpack_from("<I", data, 4)
    while struct.unpack_from("<H", data, place + 2)[0] != tag:
        place += 12
    return edited(data, place + 4, struct.pack("<HII", 4, 1, 100_000))


JPEG, PNG, GIF, BMP = encoded(RGB, "JPEG"), encoded(RGB), encoded(RGB.convert("P"), "GIF"), encoded(RGB, "BMP")
WEBP, LOSSLESS = encoded(RGB, "WEBP"), encoded(RGB, "WEBP", lossless=True)
TIFF, LINE = encoded(RGB, "TIFF"), RGB.resize((5000, 1))
START, FRAME, VP8 = JPEG.index(b"\xff\xc0"), GIF.index(b",", 13 + 768), WEBP.index(b"\x9d\x01\x2a")
MANY = struct.pack("<HH", 16383, 16383)  # pixels of WebP

IMAGES: dict[str, tuple[bytes, Fate]] = {
    "no bytes": (b"", "the file is empty"),
    "zeros": (bytes(1000), NO_IMAGE),
    "text": (b"soon", NO_IMAGE),
    "HTML": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", NO_IMAGE),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", NO_IMAGE),
    "PostScript": (encoded(RGB, "EPS"), NO_IMAGE),  # Pillow would run Ghostscript
    "PDF": (encoded(RGB, "PDF"), NO_IMAGE),
    "AVIF": (encoded(RGB, "AVIF"), NO_IMAGE),
    "icon": (encoded(RGB, "ICO"), NO_IMAGE),
    "zip": (b"PK\3\4" + bytes(100), NO_IMAGE),
    "JPEG": (JPEG, WIDE),
    "JPEG, gray": (encoded(RGB.convert("L"), "JPEG"), WIDE),
    "JPEG, CMYK": (encoded(RGB.convert("CMYK"), "JPEG"), WIDE),
    "JPEG, progressive": (encoded(RGB, "JPEG", progressive=True), WIDE),
    "JPEG, arithmetic": (JPEG.replace(b"\xff\xc0", b"\xff\xc9"), WIDE),
    "JPEG, lossless": (JPEG.replace(b"\xff\xc0", b"\xff\xc3"), UNDECODED),
    "JPEG, of several pictures": (encoded(RGB, "MPO", save_all=True, append_images=[TURNED]), WIDE),
    "JPEG, with a film behind it": (JPEG + RNG.bytes(1000), WIDE),
    "JPEG, odd color profile": (encoded(RGB, "JPEG", icc_profile=b"\xff" * 500), WIDE),
    "JPEG, cut": (JPEG[:-200], TRUNCATED),
    "JPEG, cut in its header": (JPEG[:100], NO_IMAGE),
    "JPEG, cut before its last two bytes": (JPEG[:-2], TRUNCATED),
    "JPEG, a bit flipped in its pixels": (flipped(JPEG, len(JPEG) - 100), WIDE),  # a JPEG has no checksum
    "JPEG, a bit flipped in its header": (flipped(JPEG, 20), UNDECODED),
    **{f"JPEG, orientation {number}": (oriented(number), TALL if 5 <= number <= 8 else WIDE) for number in range(10)},
    "JPEG, orientation as a float": (encoded(RGB, "JPEG", exif=exif(11, struct.pack("<f", 6))), TALL),
    "JPEG, orientation as a fraction": (encoded(RGB, "JPEG", exif=exif(5, struct.pack("<II", 6, 1))), TALL),
    "JPEG, orientation over zero": (encoded(RGB, "JPEG", exif=exif(5, struct.pack("<II", 6, 0))), WIDE),
    "JPEG, orientation as a text": (encoded(RGB, "JPEG", exif=exif(2, b"6\0")), WIDE),
    "JPEG, EXIF of noise": (encoded(RGB, "JPEG", exif=b"Exif\0\0" + b"\xff" * 50), WIDE),
    "JPEG, 5000x1": (encoded(LINE, "JPEG"), (5000, 1)),
    "JPEG, 65500x1, CMYK": (encoded(LINE.resize((65500, 1)).convert("CMYK"), "JPEG"), (65500, 1)),
    "JPEG, no height": (edited(JPEG, START + 5, bytes(2)), NO_IMAGE),
    "JPEG bomb": (edited(JPEG, START + 5, b"\xff\xff\xff\xff"), TOO_MANY),
    "JPEG bomb, modest": (edited(JPEG, START + 5, struct.pack(">HH", 12_000, 12_000)), TOO_MANY + "12000x12000"),
    "JPEG bomb of scans": (jpeg(10_000, 10_000, 100_000), "the image has too many scans: 100000"),
    "JPEG of many scans": (jpeg(64, 64, 20), (64, 64)),
    "PNG": (PNG, WIDE),
    "PNG, RGBA": (encoded(np.dstack([NOISE, NOISE[..., :1]])), WIDE),
    "PNG, gray + alpha": (encoded(RGB.convert("LA")), WIDE),
    "PNG, 1-bit": (encoded(RGB.convert("1")), WIDE),
    "PNG, palette": (encoded(RGB.convert("P")), WIDE),
    "PNG, palette with transparency": (encoded(RGB.convert("P"), transparency=3), WIDE),
    "PNG, one transparent color": (encoded(RGB, transparency=(1, 2, 3)), WIDE),
    "PNG, 16-bit gray": (encoded(DEEP[..., 0].copy()), WIDE),
    "PNG, 16-bit RGB": (cv2.imencode(".png", DEEP[..., :3])[1].tobytes(), WIDE),
    "PNG, 16-bit RGBA": (cv2.imencode(".png", DEEP)[1].tobytes(), WIDE),
    "PNG, interlaced": (png(1, 1, pixels=bytes(4), interlaced=1), (1, 1)),
    "PNG, animated": (encoded(RGB, save_all=True, append_images=[TURNED]), WIDE),
    "PNG, orientation 6": (encoded(RGB, exif=exif(3, struct.pack("<H", 6))), TALL),
    "PNG, cut": (PNG[:300], TRUNCATED),
    "PNG, cut behind its pixels": (PNG[:-12], WIDE),
    "PNG, garbage behind it": (PNG + b"garbage", WIDE),
    "PNG, a bit flipped in its pixels": (flipped(PNG, 500), UNDECODED),
    "PNG, a bit flipped in its header": (flipped(PNG, 20), NO_IMAGE),
    "PNG without pixels": (PNG[:33] + PNG[-12:], UNDECODED),
    "PNG, 0x0": (png(0, 0), NO_IMAGE),
    "PNG, 1x1": (encoded(NOISE[:1, :1]), (1, 1)),
    "PNG, 1x5000": (encoded(LINE.transpose(Image.Transpose.ROTATE_90)), (1, 5000)),
    "PNG bomb": (png(60_000, 60_000), TOO_MANY),
    "PNG bomb, modest": (png(10_001, 10_000), TOO_MANY + "10001x10000"),
    "PNG bomb of text": (png(24, 16, (b"zTXt", b"a\0\0" + zlib.compress(bytes(10**7)))), NO_IMAGE),
    "PNG bomb of profile": (png(24, 16, (b"iCCP", b"a\0\0" + zlib.compress(bytes(10**7)))), NO_IMAGE),
    "PNG bomb behind its pixels": (png(24, 16, pixels=bytes(10**7)), WIDE),
    "WebP": (WEBP, WIDE),
    "WebP, lossless": (LOSSLESS, WIDE),
    "WebP, RGBA": (encoded(np.dstack([NOISE, NOISE[..., :1]]), "WEBP"), WIDE),
    "WebP, animated": (encoded(RGB, "WEBP", save_all=True, append_images=[TURNED]), WIDE),
    "WebP, cut": (WEBP[:-200], NO_IMAGE),
    "WebP, a bit flipped in its pixels": (flipped(WEBP, len(WEBP) - 100), WIDE),  # a WebP has no checksum
    "WebP, a bit flipped in its header": (flipped(WEBP, 9), NO_IMAGE),
    "WebP bomb": (edited(WEBP, VP8 + 3, MANY), TOO_MANY),
    "WebP bomb, lossless": (edited(LOSSLESS, 21, struct.pack("<I", 2**28 - 1)), TOO_MANY),
    "GIF": (GIF, WIDE),
    "GIF, transparent": (encoded(RGB.convert("P"), "GIF", transparency=0), WIDE),
    "GIF, animated": (encoded(RGB.convert("P"), "GIF", save_all=True, append_images=[TURNED.convert("P")]), WIDE),
    "GIF, cut": (GIF[:-100], TRUNCATED),
    "GIF without a frame": (GIF[:FRAME] + b";", NO_IMAGE),
    "GIF bomb": (edited(GIF, 6, b"\xff\xff\xff\xff"), TOO_MANY),
    "GIF bomb in its frame": (edited(GIF, FRAME + 5, b"\xff\xff\xff\xff"), TOO_MANY),
    "BMP": (BMP, WIDE),
    "BMP, top down": (edited(BMP, 22, struct.pack("<i", -16)), WIDE),
    "BMP, 1-bit": (encoded(RGB.convert("1"), "BMP"), WIDE),
    "BMP, cut": (BMP[:-100], TRUNCATED),
    "BMP bomb": (edited(BMP, 18, struct.pack("<ii", 100_000, 100_000)), TOO_MANY),
    "TIFF, float": (encoded(FLOAT, "TIFF"), WIDE),
    "TIFF, float, not a number": (encoded(np.where(FLOAT < 0.1, np.nan, FLOAT), "TIFF"), "the image holds values that"),
    "TIFF, float, infinite": (encoded(np.where(FLOAT < 0.1, np.inf, FLOAT), "TIFF"), "the image holds values that"),
    "TIFF, 32-bit": (encoded(DEEP[..., 0].astype(np.int32) - 9999, "TIFF"), WIDE),
    "TIFF, 16-bit": (encoded(DEEP[..., 0].copy(), "TIFF"), WIDE),
    "TIFF, CMYK": (encoded(RGB.convert("CMYK"), "TIFF"), WIDE),
    "TIFF, Lab": (encoded(RGB.convert("LAB"), "TIFF"), WIDE),
    "TIFF, 1-bit, fax": (encoded(RGB.convert("1"), "TIFF", compression="group4"), WIDE),
    "TIFF, of several pages": (encoded(RGB, "TIFF", save_all=True, append_images=[LINE]), WIDE),
    "TIFF, orientation 6": (encoded(RGB, "TIFF", exif=exif(3, struct.pack("<H", 6))[6:]), TALL),
    "TIFF, in tiles": (tiff(24, 16, (32, 32)), WIDE),
    "TIFF, cut": (TIFF[:-100], TRUNCATED),
    "TIFF without tags": (b"II*\0\x08\0\0\0", NO_IMAGE),
    "TIFF bomb": (vast(vast(TIFF, 256), 257), TOO_MANY),
    "TIFF bomb of samples": (vast(TIFF, 277), NO_IMAGE),
    "TIFF bomb of a tile": (tiff(24, 16, (32_000, 32_000)), TOO_MANY + "32000x32000"),
    "TIFF bomb of many tiles": (tiff(100_000, 1, (16, 6_000_000)), TOO_MANY + "100000x6000000"),
}

NO_MASK, OTHER_SIZE = "the mask is not an 8-bit PNG of indices: ", "the mask and its upright image differ in size: "
MASKS: dict[str, tuple[bytes | None, Fate]] = {
    "missing": (None, WIDE),
    "good": (encoded(INDICES), WIDE),
    "with 255": (encoded(INDICES * 255), WIDE),
    "nothing but 255": (encoded(INDICES * 0 + 255), WIDE),
    "palette": (encoded(Image.fromarray(INDICES).convert("P")), WIDE),
    "beyond the names": (encoded(INDICES * 2), "the mask holds an index without a name: 2, names are for 0 to 1"),
    "too small": (encoded(INDICES[:8]), OTHER_SIZE + "24x8 for 24x16"),
    "turned": (encoded(INDICES.T.copy()), OTHER_SIZE + "16x24 for 24x16"),
    "RGB": (PNG, NO_MASK + "PNG, mode RGB"),
    "RGBA": (encoded(RGB.convert("RGBA")), NO_MASK + "PNG, mode RGBA"),
    "gray + alpha": (encoded(RGB.convert("LA")), NO_MASK + "PNG, mode LA"),
    "16-bit": (encoded(INDICES.astype(np.uint16)), NO_MASK + "PNG, mode I;16"),
    "1-bit": (encoded(Image.fromarray(INDICES > 0)), NO_MASK + "PNG, mode 1"),
    "JPEG": (encoded(INDICES, "JPEG"), NO_MASK + "JPEG"),
    "cut": (encoded(INDICES)[:60], UNDECODED),
    "text": (b"soon", NO_IMAGE),
    "no bytes": (b"", "the file is empty"),
    "bomb": (png(60_000, 60_000), TOO_MANY),
}

PLAIN_NAMES: list[str | bytes] = [
    "a b.png", " .png", "new\nline.png", "tab\t.png", "\x1b[2J\x07.png", "it's.png", '"quoted".png', "back\\slash.png",
    "$(touch MARK).png", "`touch MARK`.png", "a;touch MARK #.png", "|touch MARK.png", "a&b.png", "pipe:x.png", "{}.png",
    "-rf.png", "--help", "*.png", "?.png", "%s%n.png", "#.png", "~.png", "con.png", "l" * 251 + ".png",
    "a.b.c.png", "x..png", "dot.", "UPPER.PNG", "UPPER.JPG", "no extension", "notes.txt", "x.jpg.png", "x.tiff",
    "a_b.png", "A_B.png", "a b.jpg",  # equal keys but for the digest
    "\N{CAT FACE}.png", "\N{NO-BREAK SPACE}.png", "\N{RIGHT-TO-LEFT OVERRIDE}gnp.png",
    "e\N{COMBINING ACUTE ACCENT}.png", "\N{LATIN SMALL LETTER E WITH ACUTE}.png",
    b"\xff.png", b"\\xff.png", b"\xc3.png", b"\xed\xa0\x80.png",
]  # fmt: skip
HIDDEN_NAMES: list[str | bytes] = [".hidden.png", "._resource.png", ".png", "..."]
NAMES: dict[str | bytes, Fate] = dict.fromkeys(PLAIN_NAMES, WIDE) | dict.fromkeys(HIDDEN_NAMES)


def knot(folder: Path) -> None:
    """Folders each of which links to all."""
    for name in "abcdefgh":
        (folder / name).mkdir()
        for other in "abcdefgh":
            (folder / name / other).symlink_to(f"../{other}")


def deep(folder: Path) -> None:
    """A file deeper than a path may be long."""
    here = os.open(folder, os.O_DIRECTORY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=here)
        below = os.open("d" * 250, os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("deep.png", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)


def listen(path: Path) -> None:
    """A socket, bound by a short name: a long one does not fit its address."""
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(path.parent)
        server.bind(path.name)
        os.chdir(here)


def hole(path: Path, size: int) -> None:
    """A file of `size` zeros that takes no room."""
    path.touch()
    os.truncate(path, size)


def nested(folder: Path) -> None:
    (folder / "x.jpg").mkdir()
    (folder / "x.jpg/y.png").write_bytes(PNG)


def linked(folder: Path) -> None:
    """Two folders that link to each other, with a picture in each."""
    for name, other in ("ab", "ba"):
        (folder / name).mkdir()
        (folder / name / "x.png").write_bytes(PNG)
        (folder / name / "on").symlink_to(f"../{other}")


SPECIAL, UNREADABLE = "not a regular file", "the file cannot be read: "
FOLDERS: dict[str, tuple[Callable[[Path], object], dict[str, Fate] | str]] = {
    "link": (lambda to: (to / "x.png").symlink_to("fine.png"), {"x.png": WIDE}),
    "dangling link": (lambda to: (to / "x.png").symlink_to("nowhere"), {"x.png": UNREADABLE + "No such file"}),
    "link to itself": (lambda to: (to / "x.png").symlink_to("x.png"), {"x.png": UNREADABLE + "Too many levels"}),
    "link to its folder": (lambda to: (to / "x").symlink_to("."), {}),
    "links in a circle": (linked, dict.fromkeys(["a/x.png", "a/on/x.png", "b/x.png", "b/on/x.png"], WIDE)),
    "knot of links": (knot, "is reached in more than 100 ways"),
    "link to a device": (lambda to: (to / "x.png").symlink_to("/dev/zero"), {"x.png": SPECIAL}),
    "link to the kernel": (lambda to: (to / "x.png").symlink_to("/proc/self/mem"), {"x.png": "the file is empty"}),
    "pipe": (lambda to: os.mkfifo(to / "x.png"), {"x.png": SPECIAL}),
    "link to a pipe": (lambda to: (os.mkfifo(to / ".p"), (to / "x.png").symlink_to(".p")), {"x.png": SPECIAL}),
    "socket": (lambda to: listen(to / "x.png"), {"x.png": SPECIAL}),
    "unreadable file": (lambda to: (to / "x.png").touch(0o000), {"x.png": UNREADABLE + "Permission denied"}),
    "unreadable mask": (
        lambda to: (to / "masks/masked.png").chmod(0o000),
        {"masked.png": UNREADABLE + "Permission denied"},
    ),
    "unreadable folder": (lambda to: (to / "x").mkdir(0o000), "cannot be listed: Permission denied"),
    "folder deeper than a path": (deep, "cannot be listed: File name too long"),
    "folder named as an image": (nested, {"x.jpg/y.png": WIDE}),
    "empty folder": (lambda to: (to / "x.jpg").mkdir(), {}),
    "hidden folder": (lambda to: (to / ".git").mkdir(0o000), {}),
    "film of 2 GiB": (lambda to: hole(to / "x.png", 2**31), {"x.png": "the file is too large: 2147483648 bytes"}),
    "mask that is a pipe": (lambda to: os.mkfifo(to / "masks/fine.png"), {"fine.png": SPECIAL}),
    "mask that is a folder": (lambda to: (to / "masks/fine.png").mkdir(), {}),
}


def member(name: str | bytes, data: bytes = PNG, kind: bytes = tarfile.REGTYPE, **changes) -> bytes:
    """A member of a tar, header and data."""
    info = tarfile.TarInfo(os.fsdecode(name))
    info.type, info.size = kind, len(data)
    for field, value in changes.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def pax(name: str, **fields: str) -> bytes:
    """A member with further header fields."""
    info = tarfile.TarInfo(name)
    info.size, info.pax_headers = len(PNG), fields
    return info.tobuf(tarfile.PAX_FORMAT) + PNG + bytes(-len(PNG) % tarfile.BLOCKSIZE)


LEADS_OUT, NO_FILE = "its name in the tar leads out of the tar", "a link, a device or another special member of the tar"
MEMBERS: dict[str, tuple[bytes, dict[str, Fate]]] = {
    "..": (member("../x.png"), {"../x.png": LEADS_OUT}),
    ".. within": (member("a/../x.png"), {"a/../x.png": LEADS_OUT}),
    ".. in further fields": (pax("x.png", path="../x.png"), {"../x.png": LEADS_OUT}),
    "absolute": (member("/etc/x.png"), {"/etc/x.png": LEADS_OUT}),
    "twice": (member("x.png", b"old") + member("x.png"), {"x.png": WIDE}),  # as for tar itself, the last one counts
    "thrice, in other words": (member("x.png", b"") + member("./x.png", b"") + member(".//x.png"), {"x.png": WIDE}),
    "symbolic link": (member("x.png", b"", tarfile.SYMTYPE, linkname="/etc/passwd"), {"x.png": NO_FILE}),
    "hard link": (member("x.png", b"", tarfile.LNKTYPE, linkname="fine.png"), {"x.png": NO_FILE}),
    "link in place of a file": (member("x.png") + member("x.png", b"", tarfile.SYMTYPE), {"x.png": NO_FILE}),
    "link for a folder": (
        member("x", b"", tarfile.SYMTYPE, linkname="/tmp") + member("x/y.png"),
        {"x": NO_FILE, "x/y.png": WIDE},
    ),
    "device": (member("x.png", b"", tarfile.CHRTYPE, devmajor=1, devminor=5), {"x.png": NO_FILE}),
    "block device": (member("x.png", b"", tarfile.BLKTYPE), {"x.png": NO_FILE}),
    "pipe": (member("x.png", b"", tarfile.FIFOTYPE), {"x.png": NO_FILE}),
    "unknown type": (member("x.png", kind=b"Z"), {"x.png": NO_FILE}),
    "sparse": (pax("x.png", **{"GNU.sparse.map": "0,100", "GNU.sparse.size": "9999"}), {"x.png": NO_FILE}),
    "old type": (member("x.png", kind=tarfile.AREGTYPE), {"x.png": WIDE}),
    "contiguous": (member("x.png", kind=tarfile.CONTTYPE), {"x.png": WIDE}),
    "without access": (member("x.png", mode=0), {"x.png": WIDE}),
    "folder named as an image": (member("x.png", b"", tarfile.DIRTYPE), {}),
    "no bytes": (member("x.png", b""), {"x.png": "the file is empty"}),
    "long name": (member("d/" * 200 + "x.png"), {"d/" * 200 + "x.png": WIDE}),
    "name that is not UTF-8": (member(b"\xff.png"), {"\\xff.png": WIDE}),
    "name with a newline": (member("a\nb.png"), {"a\\u000ab.png": WIDE}),
    "no name": (member(""), {}),
    "dot": (member("."), {}),
    "hidden": (member(".x.png"), {}),
}

FINE = member("fine.png")
NO_TAR = "cannot be read as a plain, uncompressed tar: "
TARS: dict[str, tuple[Callable[[bytes], bytes], str]] = {  # of one that holds FINE twice
    "no bytes": (lambda tar: b"", NO_TAR + "empty file"),
    "text": (lambda tar: b"soon" * 1000, NO_TAR),
    "compressed": (zlib.compress, NO_TAR),
    "cut in a header": (lambda tar: tar[: len(FINE) + 100], NO_TAR),
    "cut in a member": (lambda tar: tar[: len(FINE) + 600], NO_TAR + "unexpected end of data"),
    "cut behind a member": (lambda tar: FINE, "damaged or truncated at byte"),
    "bad checksum": (lambda tar: flipped(tar, 0), NO_TAR),
    "bad checksum, later": (lambda tar: flipped(tar, len(FINE)), f"damaged or truncated at byte {len(FINE)}"),
    "no size": (lambda tar: edited(tar, 124, b"x" * 11), NO_TAR),
    "size that is no number": (lambda tar: pax("x.png", size="many") + tar, NO_TAR),
    "size beyond the end": (lambda tar: FINE + member("x.png", b"", size=2**40) + tar, NO_TAR + "unexpected end"),
    "negative size": (lambda tar: FINE + member("x.png", b"", size=-len(FINE)) + tar, "the member at byte"),
    "long name of a terabyte": (lambda tar: member("x", b"", b"L", size=2**40) + tar, NO_TAR + "a header of"),
    "long name of less than nothing": (lambda tar: FINE + member("x", b"", b"L", size=-512) + tar, "a header of -512"),
    "headers upon headers": (lambda tar: member("x", b"y", b"L") * 1000 + tar, NO_TAR + "maximum recursion depth"),
}


def shard(key: str, **members: bytes) -> bytes:
    """A sample: its members by extension."""
    return b"".join(member(f"{key}.{extension}", data) for extension, data in members.items())


def labeled(value: object) -> bytes:
    return shard("x", png=PNG, json=json.dumps({"label": value}).encode())


SAMPLES: dict[str, tuple[bytes, dict[str, Fate]]] = {
    "image": (labeled("cat"), {"x.png": WIDE}),
    "no image": (shard("x", json=b"{}"), {"x": "the sample has no image: its members are json"}),
    "two images": (shard("x", png=PNG, jpg=JPEG, json=b"{}"), {"x": "the sample has several images: png, jpg"}),
    "two of one name": (shard("x", png=PNG, txt=b"", TXT=b""), {"x.png": "the sample has two members of one name"}),
    "key twice": (
        labeled(1) + shard("y", png=PNG) + labeled(1),
        {"x.png": WIDE, "y.png": WIDE, "x.png#2": "the key comes twice in its shard: x"},
    ),
    "image that is a link": (member("x.png", b"", tarfile.SYMTYPE, linkname="/etc/passwd"), {"x.png": NO_FILE}),
    "caption that is a device": (shard("x", png=PNG) + member("x.txt", b"", tarfile.CHRTYPE), {"x.png": NO_FILE}),
    "pickles": (shard("x", png=PNG, pkl=b"cos\nsystem\n(S'touch MARK'\ntR.", pyd=b"x", pth=b"x"), {"x.png": WIDE}),
    "key that leads out": (shard("../../x", png=PNG), {"../../x.png": WIDE}),  # no path is made of it
    "key with bytes": (member(b"\xff.png"), {"\\xff.png": WIDE}),
    "key with control characters": (shard("\x1b[2J\n", png=PNG), {"\\u001b[2J\\u000a.png": WIDE}),
    "json of brackets": (shard("x", png=PNG, json=b"[" * 100_000), {"x.png": "its json is broken: "}),
    "json of bytes": (shard("x", png=PNG, json=b"\xff"), {"x.png": "its json is broken: "}),
    "json of digits": (shard("x", png=PNG, json=b'{"label": ' + b"9" * 5000 + b"}"), {"x.png": "its json is broken: "}),
    "json that is a list": (shard("x", png=PNG, json=b"[]"), {"x.png": "its json is no object with fields"}),
    "label that is a list": (labeled(["cat"]), {"x.png": "the label is neither a number nor a text: ['cat']"}),
    "label that is not finite": (labeled(float("inf")), {"x.png": "the label is neither a number nor a text: inf"}),
    "label of a megabyte": (labeled("9" * 10**6), {"x.png": "the label is too long: 1000000 characters"}),
    "label that no text holds": (labeled("\ud800"), {"x.png": WIDE}),
    "no label": (labeled(None), {"x.png": WIDE}),
}
