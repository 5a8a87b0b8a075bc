"""``sandbox save``, ``load``, ``import``, ``export`` and ``image bootstrap``: images as files, and root file systems as images."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Final

from sandbox import SandboxError
from sandbox.cli.outcome import outcome
from sandbox.cli.parser import Parser, WrongUseError
from sandbox.image import Platform, bootstrap, export, import_rootfs, load, save

__all__ = ["main_bootstrap", "main_export", "main_import", "main_load", "main_save"]

STDIN: Final = 0
STDOUT: Final = 1


def main_save(arguments: Sequence[str]) -> int:
    """Write images into an archive."""
    parser = _parser("save", "Write images into one archive, that other programs read too.")
    parser.add_argument("-o", "--output", metavar="FILE", help="where to (default: standard output, which must not be a terminal)")
    parser.add_argument(
        "--format",
        choices=("docker", "oci", "oci-dir"),
        default="docker",
        help="docker: as docker save, and a layout too (default); oci: an OCI layout in a tar; oci-dir: in the directory FILE",
    )
    parser.add_argument("images", metavar="IMAGE", nargs="+")

    def run(options: argparse.Namespace) -> None:
        if options.format == "oci-dir" and options.output is None:
            raise WrongUseError("--format oci-dir takes the directory as --output")
        save(options.images, STDOUT if options.output is None else options.output, format=options.format)

    return outcome(parser.prog, lambda: run(parser.parse_args(list(arguments))))


def main_load(arguments: Sequence[str]) -> int:
    """Take the images of an archive into the store."""
    parser = _parser("load", "Take all images of an archive, or of an OCI layout's directory, into the store.")
    parser.add_argument("-i", "--input", metavar="FILE", help="an archive, compressed or not, or a directory (default: standard input)")
    parser.add_argument("--name", metavar="NAME", help="what images are called that the archive gives no name, or a tag alone")
    parser.add_argument("--platform", metavar="OS/ARCH", type=_platform, help="which one of an image for several machines (default: this machine's)")
    parser.add_argument("-q", "--quiet", action="store_true", help="do not say what was loaded")

    def run(options: argparse.Namespace) -> None:
        source = _standard_input() if options.input is None else options.input
        for image in load(source, name=options.name, platform=options.platform):
            for name in () if options.quiet else image.names or (str(image.id),):
                print(f"Loaded {name}")

    return outcome(parser.prog, lambda: run(parser.parse_args(list(arguments))))


def main_import(arguments: Sequence[str]) -> int:
    """Make an image of a root file system."""
    parser = _parser("import", "Make an image of one layer of a root file system, and print its id.")
    parser.add_argument("-c", "--change", metavar="LINE", action="append", default=[], help="an instruction of a Dockerfile, such as 'CMD [\"sh\"]'")
    parser.add_argument("-m", "--message", metavar="TEXT", default="", help="what its history says")
    parser.add_argument("--platform", metavar="OS/ARCH", type=_platform, help="what its programs are for (default: this machine)")
    parser.add_argument("source", metavar="FILE|-|DIRECTORY", help="a tar, compressed or not; - for standard input; or a directory")
    parser.add_argument("name", metavar="NAME", nargs="?", help="what the image is called")

    def run(options: argparse.Namespace) -> None:
        source = _standard_input() if options.source == "-" else options.source
        image = import_rootfs(source, options.name, changes=options.change, message=options.message, platform=options.platform)
        print(image.id)

    return outcome(parser.prog, lambda: run(parser.parse_args(list(arguments))))


def main_image_export(arguments: Sequence[str]) -> int:
    """Write the root of an image into a tar, whatever containers are called."""
    return main_export(arguments, takes_containers=False)


def main_export(arguments: Sequence[str], *, takes_containers: bool = True) -> int:
    """Write the root of a container or an image into a tar."""
    parser = _parser("export", "Write the root file system of a container that outlives its command, or of an image, into one tar.")
    parser.add_argument("-o", "--output", metavar="FILE", help="where to (default: standard output, which must not be a terminal)")
    parser.add_argument("image", metavar="CONTAINER|IMAGE")

    def run(options: argparse.Namespace) -> None:
        from sandbox.cli.container_files import export_container, find_exported

        container = find_exported(options.image) if takes_containers else None
        if container is not None:
            export_container(container, options.output)
            return
        export(options.image, STDOUT if options.output is None else options.output)

    return outcome(parser.prog, lambda: run(parser.parse_args(list(arguments))))


def main_bootstrap(arguments: Sequence[str]) -> int:
    """Make an image of a distribution's packages."""
    parser = _parser("image bootstrap", "Make an image of the packages of Debian or Ubuntu, with debootstrap, and print its id.")
    parser.add_argument("--suite", metavar="NAME", help="such as bookworm, where the image's name does not tell it")
    parser.add_argument("--mirror", metavar="URL", help="where packages come from (default: debootstrap's own)")
    parser.add_argument("--variant", help="minbase (default), buildd or standard; as an ordinary user: fakechroot")
    parser.add_argument("--include", metavar="PACKAGE,...", type=_list, default=[], help="more packages")
    parser.add_argument("--components", metavar="NAME,...", type=_list, default=[], help="such as main,contrib")
    parser.add_argument("--keyring", metavar="FILE", help="the keys that the mirror is signed with")
    parser.add_argument("name", metavar="NAME", help="what the image is called: debian:12, ubuntu:24.04, or anything with --suite")

    def run(options: argparse.Namespace) -> None:
        print(bootstrap(**vars(options)).id)

    return outcome(parser.prog, lambda: run(parser.parse_args(list(arguments))))


def _list(text: str) -> list[str]:
    return text.split(",")


def _parser(command: str, description: str) -> Parser:
    return Parser(prog=f"sandbox {command}", description=description, allow_abbrev=False)


def _platform(text: str) -> Platform:
    try:
        return Platform.parse(text)
    except SandboxError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _standard_input() -> int:
    """Its descriptor. Raises: WrongUseError: it is a terminal, where nobody types an archive."""
    if os.isatty(STDIN):
        raise WrongUseError("standard input is a terminal; name a file")
    return STDIN
