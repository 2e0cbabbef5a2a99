"""Reads compiled device code: object files in, kernels with their resources and instructions out.

cuobjdump takes cubins out of object files and knows their resources, nvdisasm their instructions
(as JSON); the launch bounds and whether there is shared memory stand in the cubin itself, an ELF
file.
"""
import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
import struct
import subprocess
import tempfile

from gpu_code import sass

ROOT = pathlib.Path(__file__).resolve().parents[2]
# What a chip's own software takes of a block's shared memory; cuobjdump counts it as the kernel's.
RESERVED_SHARED_BYTES = 1024
FIRST_CHIP_THAT_RESERVES = 90


class ReadError(Exception):
    """Something is not as this script expects it: no figure is better than a wrong one."""


class NoTool(ReadError):
    """A disassembler is missing."""


@dataclasses.dataclass
class Kernel:
    """One variant (instance of a template) of a kernel on one chip."""
    symbol: str
    name: str  # readable, without namespaces and arguments
    source: str  # "gemm/stream_product.cu"
    chip: str  # "90a"
    registers: int
    stack_bytes: int  # of a thread's local memory
    static_shared_bytes: int
    max_threads: int  # the launch bounds
    has_dynamic_shared: bool
    empty: bool  # the chip lacks what the kernel needs: there is no body, and no launcher starts it
    loop_depth: int  # of the hot loop; 0: a straight line, and the hot loop is all of it
    whole: dict  # instructions by kind
    hot: dict  # those of the hot loop

    @property
    def template(self):
        return self.name.split("<")[0]


def tool(name):
    """The pinned wheels' (scripts/setup-cuda) before a toolkit's, so that all count alike."""
    homes = [os.environ[home] for home in ("CUDA_HOME", "CUDA_PATH") if home in os.environ]
    for place in (ROOT / ".venv-cuda/toolkit/bin" / name, shutil.which(name),
                  *(pathlib.Path(home) / "bin" / name for home in [*homes, "/usr/local/cuda"])):
        if place and os.access(place, os.X_OK):
            return str(place)
    raise NoTool(f"{name} is not here: run scripts/setup-cuda (it takes NVIDIA's disassemblers "
                 "from PyPI)")


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode != 0:
        raise ReadError(f"{' '.join(map(str, command))} failed:\n{done.stderr or done.stdout}")
    return done.stdout


# -- The cubin as an ELF file.

def launch_facts(cubin):
    """{symbol: (threads by the launch bounds, whether it has shared memory)}."""
    data = pathlib.Path(cubin).read_bytes()
    table, = struct.unpack_from("<Q", data, 0x28)
    entry, count, names = struct.unpack_from("<HHH", data, 0x3a)
    sections = [struct.unpack_from("<IIQQQQ", data, table + i * entry) for i in range(count)]

    def name_of(section):
        begin = sections[names][4] + section[0]
        return data[begin:data.index(b"\0", begin)].decode()

    threads, shared = {}, set()
    for section in sections:
        name = name_of(section)
        if name.startswith(".nv.info._"):
            threads[name[len(".nv.info."):]] = max_threads(data[section[4]:section[4] + section[5]])
        elif name.startswith(".nv.shared._"):
            shared.add(name[len(".nv.shared."):])
    return {symbol: (threads[symbol], symbol in shared) for symbol in threads}


def max_threads(info):
    """EIATTR_MAX_THREADS of a kernel's .nv.info section: records of format, attribute and value."""
    at = 0
    while at < len(info):
        form, attribute, value = struct.unpack_from("<BBH", info, at)
        if attribute == 0x05 and form == 0x04:
            x, y, z = struct.unpack_from("<III", info, at + 4)
            return x * y * z
        at += 4 + (value if form == 0x04 else 0)
    return 1024


# -- The tools' output.

RESOURCES = re.compile(r"Function (\S+):\s*\n\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


def resources(cubin):
    """{symbol: (registers, stack bytes, shared bytes)}."""
    text = run(tool("cuobjdump"), "-res-usage", cubin)
    return {m[1]: (int(m[2]), int(m[3]) + int(m[5]), int(m[4])) for m in RESOURCES.finditer(text)}


def instructions(cubin):
    """{symbol: [Instruction]}, without the padding behind the last one."""
    found = {}
    for function in json.loads(run(tool("nvdisasm"), "-ndf", "-json", "-c", cubin))[1]:
        code = [sass.Instruction(i["opcode"], i.get("operands", ""), i.get("predicate", ""))
                for i in function["sass-instructions"]]
        found[function["function-name"]] = sass.without_padding(code)
    return found


def enumerators():
    """{"TileMath": ["kBf16", ...]} of our enum classes, which symbols hold as numbers."""
    found = {}
    for file in [*(ROOT / "common").rglob("*.h"), *(ROOT / "kernels").rglob("*.h"),
                 *(ROOT / "kernels").rglob("*.cu")]:
        for match in re.finditer(r"enum class (\w+)[^{;]*\{([^}]*)\}", file.read_text()):
            body = re.sub(r"//[^\n]*", "", match[2])
            found[match[1]] = [word.strip() for word in body.split(",") if word.strip()]
    return found


def readable_names(symbols):
    """{symbol: name}: demangled, enumerators by name, no namespaces, arguments and return type."""
    if not symbols:
        return {}
    enums = enumerators()

    def enumerator(match):
        names, number = enums.get(match[1]), int(match[2])
        return names[number] if names and number < len(names) else f"{match[1]}({number})"

    names = {}
    lines = run("c++filt", input="\n".join(symbols)).splitlines()
    for symbol, line in zip(symbols, lines, strict=True):
        name = line.replace("(anonymous namespace)::", "").replace("lapidary::", "")
        name = re.sub(r"\((\w+)\)(\d+)", enumerator, name)
        depth, end = 0, len(name)
        for i, letter in enumerate(name):  # the first parenthesis outside angle brackets
            depth += (letter == "<") - (letter == ">")
            if letter == "(" and depth == 0:
                end = i
                break
        name = name[:end].removeprefix("void ")
        names[symbol] = re.sub(r"\s+(?=>)", "", name)
    return names


def read_cubin(cubin, source):
    chip = re.search(r"\.sm_(\w+)\.cubin$", str(cubin))[1]
    used, facts, code = resources(cubin), launch_facts(cubin), instructions(cubin)
    if not set(used) <= set(code) or not set(used) <= set(facts):
        raise ReadError(f"{source}, sm_{chip}: the tools name different kernels")
    reserved = RESERVED_SHARED_BYTES if int(chip.rstrip("a")) >= FIRST_CHIP_THAT_RESERVES else 0
    kernels = []
    for symbol, (registers, stack, shared) in used.items():
        threads, has_shared = facts[symbol]
        static = shared - reserved if has_shared else 0
        hot, depth = sass.hot_loop(code[symbol])
        kernels.append(Kernel(symbol, "", source, chip, registers, stack, static, threads,
                              has_shared and static == 0, sass.does_nothing(code[symbol]), depth,
                              dict(sass.Mix(code[symbol])), dict(hot)))
    return kernels


def source_of(path):
    """gemm/stream_product.cu of CMake's .../x.dir/__/gemm/stream_product.cu.o."""
    return re.sub(r"^.*/__/", "", str(path)).removesuffix(".o")


def read_object(path):
    """Kernels of one object file, for every chip in it."""
    path = pathlib.Path(path).resolve()
    with tempfile.TemporaryDirectory() as folder:
        run(tool("cuobjdump"), "-xelf", "all", path, cwd=folder)
        return [kernel for cubin in sorted(pathlib.Path(folder).iterdir())
                for kernel in read_cubin(cubin, source_of(path))]


def reader_identity():
    """Changes with this folder's readers and with the tools."""
    parts = [pathlib.Path(__file__).with_name(name).read_bytes()
             for name in ("device_code.py", "sass.py")]
    parts += [run(tool(name), "--version").encode() for name in ("cuobjdump", "nvdisasm")]
    return hashlib.sha256(b"".join(parts)).digest()


def read_object_once(path, cache, identity):
    """read_object, remembered in the folder `cache` by content: disassembly takes a minute."""
    content = hashlib.sha256(identity + pathlib.Path(path).read_bytes()).hexdigest()
    file = cache / f"{pathlib.Path(path).name}.{content[:24]}.json"
    if file.exists():
        return [Kernel(**fields) for fields in json.loads(file.read_text())]
    kernels = read_object(path)
    for old in cache.glob(f"{pathlib.Path(path).name}.*.json"):
        old.unlink(missing_ok=True)
    part = file.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps([dataclasses.asdict(kernel) for kernel in kernels]))
    part.rename(file)
    return kernels


def read_objects(paths, cache):
    cache.mkdir(parents=True, exist_ok=True)
    paths = sorted(paths, key=lambda path: -pathlib.Path(path).stat().st_size)  # the longest first
    identity = reader_identity()
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(read_object_once, paths, [cache] * len(paths),
                              [identity] * len(paths)))
    kernels = [kernel for part in found for kernel in part]
    if not kernels:
        raise ReadError("there is no kernel in " + " ".join(map(str, paths)))
    names = readable_names(sorted({kernel.symbol for kernel in kernels}))
    for kernel in kernels:
        kernel.name = names[kernel.symbol]
    return kernels
