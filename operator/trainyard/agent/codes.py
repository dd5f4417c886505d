"""What a fault code of Ascend's driver says by itself: which unit of the chip, which kind of sensor, which event. Pure.

Facts are from the driver's source (github.com/hicann/driver: dms_device_node_type.h, ascend_hal_define.h,
dms_sensor_type.c, dms_sensor.c, bbox_pub.h). There are two kinds of codes of 32 bits:

- events: four bits for who says it (4: the host, 8: the device), 11 for the unit, 8 for the sensor, 9 for the event;
- black box codes: four bits (9, A or B), 3 for how grave it is, 8 for the module, 17 that the module numbers itself.
"""

from __future__ import annotations

import re

_UNITS = {
    0x40: "chip", 0x41: "PCIe link", 0x42: "HCCS link", 0x50: "CPU core", 0x51: "L3 data", 0x52: "L3 tags",
    0x53: "mesh", 0x54: "ring bus", 0x55: "ring bridge", 0x56: "interrupt controller", 0x57: "interrupt translation",
    0x58: "MN", 0x59: "CS", 0x5A: "SIO", 0x5B: "SLLC", 0x5C: "PCIe, local", 0x5D: "RoCE", 0x5E: "NIC", 0x5F: "UFS",
    0x60: "SPI", 0x61: "xGMAC", 0x62: "safety island", 0x63: "task scheduler", 0x64: "AI core", 0x65: "AI vector core",
    0x66: "L2 buffer", 0x67: "SDMA", 0x68: "DVPP", 0x69: "JPEG decoder", 0x6A: "JPEG encoder", 0x6B: "PNG decoder",
    0x6C: "video decoder", 0x6D: "video encoder", 0x6E: "image preprocessing (VPC)", 0x6F: "DDR", 0x70: "HBM",
    0x71: "LPM", 0x72: "security module (HSM)", 0x73: "TEE driver", 0x78: "DDR access unit", 0x79: "HBM access unit",
    0x7A: "ISP", 0x7B: "task scheduler hardware", 0x7C: "base services", 0x7D: "task scheduler CPU",
    0x7E: "tsd_daemon", 0x7F: "dmp_daemon", 0x80: "adda", 0x81: "slogd", 0x82: "log-daemon", 0x83: "network port",
    0x86: "MCU", 0x88: "power management", 0x89: "voltage regulator", 0x8A: "MBIGEN", 0x8B: "TEE OS",
    0x8C: "AO subsystem", 0x8D: "peripherals", 0x8E: "HAC subsystem", 0x8F: "IO subsystem", 0x90: "HILINK",
    0x91: "media subsystem", 0x92: "ISP subsystem", 0x93: "CPU cluster", 0x96: "task scheduler hardware's CPU",
    0x97: "task scheduler firmware", 0x98: "DSA", 0xC7: "SDMA master", 0xC8: "power glitch sensor", 0xCD: "HCCS",
    0xCE: "eMMC", 0xD1: "HCCS port", 0xD2: "IMU", 0xD5: "ROH", 0xD6: "ROH port", 0xD7: "UB", 0xD8: "UB port",
    0xD9: "CCU", 0xDE: "ZIP", 0xDF: "SEC",
    0x600: "base services", 0x601: "process-manager", 0x602: "iammgr", 0x603: "proc_launcher", 0x604: "adda",
    0x605: "dmp_daemon", 0x606: "sklogd", 0x607: "slogd", 0x608: "log-daemon", 0x609: "hdcd",
    0x60B: "AI CPU scheduler", 0x60C: "queue scheduler", 0x60E: "AI CPU scheduler for custom operators",
    0x60F: "collective communication", 0x610: "tsd_daemon", 0x616: "timer server", 0x617: "operating system",
    0x619: "data_master", 0x61A: "cfg_mgr", 0x61D: "data_gw", 0x623: "resource_mgr", 0x625: "driver",
}
_SUBSYSTEMS = {  # the first of up to four units: dispatch, AA, scheduler, SMMU
    0x99: "task scheduler", 0xA3: "DVPP", 0xA7: "ISP", 0xAB: "AO subsystem", 0xAF: "peripherals", 0xB3: "HAC subsystem",
    0xB7: "IO subsystem", 0xBB: "safety island",
}
for _first, _name in _SUBSYSTEMS.items():
    _UNITS |= {_first + _number: f"{_part}, {_name}" for _number, _part in enumerate(
        ("dispatch", "AA", "scheduler", "SMMU"))}
_UNITS |= {
    0x9D: "dispatch, AI core", 0x9E: "AA, AI core", 0x9F: "SMMU, AI core", 0xA0: "dispatch, AI vector core",
    0xA1: "AA, AI vector core", 0xA2: "SMMU, AI vector core", 0xC9: "dispatch, DSA", 0xCA: "dispatch, NIC",
    0xCB: "dispatch, PCIe", 0xDA: "dispatch, UB", 0xDB: "AA, UB", 0xE2: "SMMU, DSA", 0xE3: "SMMU, PCIe",
    0xE4: "SMMU, NIC",
}
_LIMITS = dict(enumerate((
    *("below its lower limit, minor",) * 2, *("below its lower limit, major",) * 2,
    *("below its lower limit, critical",) * 2, *("above its upper limit, minor",) * 2,
    *("above its upper limit, major",) * 2, *("above its upper limit, critical",) * 2)))
_SENSORS: dict[int, tuple[str, dict[int, str]]] = {
    0x01: ("temperature", _LIMITS),
    0x02: ("voltage", _LIMITS),
    0x03: ("current", _LIMITS),
    0x04: ("fan", _LIMITS),
    0x07: ("processor", {}),
    0x08: ("power supply", {1: "failed", 2: "about to fail", 3: "no input", 4: "no input, or out of range",
                            5: "input out of range", 6: "configuration error", 7: "output out of range",
                            8: "output cannot be controlled"}),
    0x09: ("power", {6: "failed", 7: "about to fail", 8: "too hot, minor", 9: "temperature cannot be read",
                     0xA: "reports late", 0xB: "configuration error", 0xD: "cannot be reached", 0xE: "minor error",
                     0xF: "error of the main supply"}),
    0x0C: ("memory", {0: "ECC error, corrected", 1: "multi-bit ECC error", 2: "parity error", 3: "patrol failed",
                      4: "switched off", 5: "many ECC errors, corrected", 7: "configuration error", 8: "spare in use",
                      9: "patrol found a multi-bit ECC error", 0xA: "patrol found many ECC errors, corrected",
                      0xB: "single-bit ECC error of the link", 0xC: "two-bit ECC error of the link",
                      0xD: "error of a mirror"}),
    0x0F: ("firmware", {0: "error at the start", 1: "hangs", 3: "its next start will fail",
                        4: "the chip's next start will fail"}),
    0x11: ("watchdog", {}),
    0x23: ("watchdog", {}),
    0x26: ("monitoring chip", {1: "bad"}),
    0x27: ("heartbeat", {0: "lost", 1: "lost, says the second monitor"}),
    0xC0: ("", {0: "error", 1: "error that cannot be mended", 2: "input error", 3: "configuration error",
                4: "configuration error", 5: "parity error", 6: "single-bit ECC error, corrected",
                7: "single-bit ECC error, not corrected", 8: "multi-bit ECC error", 9: "bus error", 0xA: "timeout",
                0xB: "heartbeat lost", 0xC: "internal error", 0xD: "link error", 0xE: "multi-bit ECC error, corrected",
                0xF: "parity error of the data lines"}),
    0xC1: ("certificates", {0: "about to expire", 1: "expired", 2: "revocation list about to expire",
                            3: "revocation list expired", 4: "authority's about to expire",
                            5: "authority's expired"}),
    0xC2: ("record of memory errors", {0: "a new multi-bit ECC error", 1: "many multi-bit ECC errors",
                                       2: "too many multi-bit ECC errors", 3: "very many single-bit ECC errors",
                                       4: "interrupts of multi-bit errors masked", 5: "sub-healthy"}),
    0xC3: ("", {0: "lockstep error", 1: "register overflow", 2: "sending timed out", 3: "link is down",
                4: "configuration error of the port", 5: "lanes lost", 7: "second port's link is down",
                8: "sending again timed out", 9: "an operation was tried again", 0xA: "the spare link is in use",
                0xB: "an operation failed again", 0xC: "channel error", 0xD: "poisoned data read",
                0xE: "CPU does not wake up", 0xF: "access without permission"}),
    0xC4: ("monitoring", {0: "late, minor", 1: "late, major", 2: "reports late, minor", 3: "reports late, major",
                          4: "channel error", 5: "channel error, says the second monitor",
                          6: "register reads other than written", 7: "register error",
                          8: "register error, without effect", 9: "self-test failed", 0xA: "self-test does not run",
                          0xC: "link diagnosis failed", 0xD: "storm of interrupts"}),
    0xC5: ("bus", {0: "time stamps wrong", 1: "events lost", 2: "overloaded", 3: "off"}),
    0xC6: ("check", {0: "failed", 1: "CRC failed", 2: "RTSQ failed", 3: "ACSQ failed", 4: "DMA over PCIe failed",
                     5: "stress test failed", 6: "stress test abnormal"}),
    0xC7: ("cryptography", {}),
    0xC9: ("scheduler", {0: "temperature sensor's signal late", 1: "lockstep error of interrupts"}),
    0xD0: ("", {0: "did not start, or ended by itself", 1: "uses too much memory", 2: "error of the file system",
                3: "file system stopped", 4: "verified data does not fit", 5: "resources not given back, minor",
                6: "resources not given back, major", 7: "monitoring does not work", 8: "scheduling does not work",
                0xA: "chip lost", 0xB: "memory for services used up", 0xC: "failed for good"}),
    0xD1: ("hardware", {0: "profile cannot be read from flash", 1: "voltage cannot be set",
                        2: "frequency cannot be set", 3: "current cannot be read", 7: "counters cannot be sent"}),
}
_MODULES = {
    0x01: "driver", 0x02: "operating system", 0x03: "task scheduler", 0x05: "AI CPU", 0x0A: "DVPP", 0x0B: "AIPP",
    0x0C: "LPM", 0x0D: "power control", 0x0F: "toolchain", 0x14: "BIOS", 0x15: "TEE OS", 0x17: "LP firmware",
    0x18: "network", 0x1A: "trusted firmware", 0x1B: "security module (HSM)", 0x1C: "ISP", 0x1D: "safety island",
    0x22: "operating system",
}
_BLACK_BOX = (0x9, 0xA, 0xB)
_GRAVITY = {1: "notice", 2: "minor", 3: "major", 4: "critical"}


def meaning(code: str) -> str:
    """Unit and event in words, as far as the code tells; empty if it is none of these codes."""
    if re.fullmatch(r"[0-9A-F]{8}", code) is None:
        return ""
    number = int(code, 16)
    if number >> 28 in _BLACK_BOX:
        return _black_box(number)
    side = {4: " (seen by the host)", 8: ""}.get(number >> 28)  # no unit's number has its highest bit
    return _event(number) + side if side is not None else ""


def _event(number: int) -> str:
    unit, sensor, event = number >> 17 & 0x7FF, number >> 9 & 0xFF, number & 0x1FF
    kind, events = _SENSORS.get(sensor, (f"sensor {sensor:02X}", {}))
    said = ", ".join(part for part in (kind, events.get(event, f"event {event:X}")) if part)
    return f"{_UNITS.get(unit, f'unit {unit:X}')}: {said}"


def _black_box(number: int) -> str:
    module, gravity = number >> 17 & 0xFF, _GRAVITY.get(number >> 25 & 7)
    words = _MODULES.get(module, f"module {module:02X}")
    return f"{words}: exception {number & 0x1FFFF:05X}" + (f", {gravity}" if gravity else "") + " (black box code)"
