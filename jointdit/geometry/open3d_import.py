"""Import Open3D on a machine without libusb."""

from __future__ import annotations

import ctypes
from types import ModuleType

from jointdit.errors import PermanentError


def import_open3d() -> ModuleType:
    """Import Open3D, and load libusb first if the system has none.

    Open3D's wheel links against libusb-1.0 for depth cameras, so `import open3d` fails on a machine without it. The
    package `libusb-package` contains the library; loading it with RTLD_GLOBAL satisfies the link without root rights.
    The import takes seconds, so call this only inside functions.

    Raises:
        PermanentError: neither the system nor `libusb-package` has libusb, or Open3D is not installed.
    """
    try:
        ctypes.CDLL("libusb-1.0.so.0", mode=ctypes.RTLD_GLOBAL)
    except OSError:
        import libusb_package

        library = libusb_package.get_library_path()
        if library is None:
            raise PermanentError("libusb-1.0 was not found, which Open3D needs: install libusb-1.0-0.") from None
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    try:
        import open3d
    except ImportError as error:
        raise PermanentError(f"open3d could not be imported ({error}): reinstall the package with its pins.") from error
    module: ModuleType = open3d
    return module
