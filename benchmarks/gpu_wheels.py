"""Gathers, as wheels, what a bare GPU machine lacks for llm-lightning, and installs them into a folder there.

    python benchmarks/gpu_wheels.py --folder wheels        # where there is a package index
    python wheels/install.py /tmp/site                     # on the machine, which needs no network
    PYTHONPATH=/tmp/site python benchmarks/gpu.py

What the machine has is read from a list (`benchmarks/gpu_image.txt`, or that of another image by --image). Of our
dependencies, and of theirs, only what is not there, or there in a version that will not do, is gathered; torch and what
it brings never are. More than --most_mb together is refused, with the largest.
"""

import argparse
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from email.parser import HeaderParser
from pathlib import Path
from zipfile import ZipFile

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
IMAGE = Path(__file__).with_name("gpu_image.txt")
FROM_THE_IMAGE = {"torch", "triton"}
"""Never gathered, whatever their version: gigabytes, and made for the machine's driver."""
UNUSED = {"wandb"}
"""Dependencies of ours that nothing on such a machine imports."""
EXTRAS = ("torchao>=0.17,<0.19",)
"""Beside our dependencies, for quantization."""
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (39, 35, 34, 31, 28, 27, 24, 17)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux1_x86_64"]

INSTALL = '''"""Install the wheels beside this file into a folder: python install.py FOLDER; then PYTHONPATH=FOLDER."""

import subprocess
import sys
from pathlib import Path

wheels = sorted(map(str, Path(__file__).parent.glob("*.whl")))
options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--upgrade", "--target", sys.argv[1]]
sys.exit(subprocess.run([sys.executable, "-m", "pip", "install", *options, *wheels], check=False).returncode)
'''


def read_image(path: Path) -> dict[str, Version | None]:
    """Versions by name, None where the list does not say."""
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    pairs = (line.partition("==")[::2] for line in lines if line)
    return {canonicalize_name(name): Version(version) if version else None for name, version in pairs}


def lacking(requirement: Requirement, image: dict[str, Version | None], python: str) -> bool:
    """Whether the machine needs a wheel for it."""
    name = canonicalize_name(requirement.name)
    environment = {
        "python_version": python, "python_full_version": f"{python}.0", "extra": "", "sys_platform": "linux",
        "platform_system": "Linux", "platform_machine": "x86_64",
    }  # fmt: skip
    if name in FROM_THE_IMAGE | UNUSED or (requirement.marker and not requirement.marker.evaluate(environment)):
        return False
    if name not in image:
        return True
    version = image[name]
    return version is not None and not requirement.specifier.contains(version, prereleases=True)


def download(requirement: Requirement, folder: Path, python: str) -> Path:
    """Its wheel for that Python on Linux, x86-64."""
    before = set(folder.glob("*.whl"))
    platforms = [option for platform in PLATFORMS for option in ("--platform", platform)]
    wanted = f"{requirement.name}{requirement.specifier}"
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--implementation=cp",
         f"--python-version={python}", *platforms, f"--dest={folder}", wanted],
        check=True,
    )  # fmt: skip
    (new,) = set(folder.glob("*.whl")) - before
    return new


def needs_of(wheel: Path, extras: set[str]) -> Iterator[Requirement]:
    """What it requires, those of the extras that were asked for included."""
    with ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = HeaderParser().parsestr(archive.read(name).decode())
    for line in metadata.get_all("Requires-Dist", []):
        requirement = Requirement(line)
        marker = str(requirement.marker or "")
        if "extra" not in marker:
            yield requirement
        elif any(requirement.marker.evaluate({"extra": extra}) for extra in extras):  # type: ignore[union-attr]
            requirement.marker = None
            yield requirement


def gather(folder: Path, image: dict[str, Version | None], python: str) -> list[Path]:
    """All wheels that are lacking, and what these lack in their turn."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    open_ones = [Requirement(line) for line in (*settings["project"]["dependencies"], *EXTRAS)]
    have, wheels = dict(image), []
    while open_ones:
        requirement = open_ones.pop(0)
        if not lacking(requirement, have, python):
            continue
        wheel = download(requirement, folder, python)
        have[canonicalize_name(requirement.name)] = parse_wheel_filename(wheel.name)[1]
        wheels.append(wheel)
        open_ones += needs_of(wheel, requirement.extras)
        print(f"{wheel.stat().st_size / 2**20:7.2f} MiB  {wheel.name}", flush=True)
    return wheels


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="to write into; new or empty")
    parser.add_argument("--image", type=Path, default=IMAGE, help="what the machine has, a package a line")
    parser.add_argument("--python", default=None, help="default: what the list of the image says, else 3.12")
    parser.add_argument("--most_mb", type=float, default=64.0, help="in MiB")
    args = parser.parse_args()
    if args.folder.exists() and any(args.folder.iterdir()):
        parser.error(f"--folder {args.folder} is not empty, and wheels of two versions stop an installation.")
    args.folder.mkdir(parents=True, exist_ok=True)
    image = read_image(args.image)
    python = args.python or str(image.get("python") or "3.12")
    wheels = gather(args.folder, image, python)
    (args.folder / "install.py").write_text(INSTALL)
    total = sum(wheel.stat().st_size for wheel in wheels) / 2**20
    print(f"{total:7.2f} MiB in {len(wheels)} wheels for Python {python}")
    if total > args.most_mb:
        largest = sorted(wheels, key=lambda wheel: -wheel.stat().st_size)[:3]
        print(f"That is over {args.most_mb:g} MiB; the largest are {', '.join(w.name for w in largest)}.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
