"""What the CUDA kernels cost, read off the machine code: no GPU is needed, only nvcc and a disassembler.

    python benchmarks/sass_budget.py [--arch 90] [--json FILE]

For every kernel: instructions for each element in its main loop (all of the loop, rare branches included), registers, the
occupancy that they allow, spills, and the widest store. Exits 1 if a budget below does not hold.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KINDS = ["uniform", "uniform_clamped", "normal", "truncated", "truncated_tail"]
DTYPES = ["float32", "float64", "float16", "bfloat16", "float8"]  # one kernel for all float8
# Instructions an element in the main loop, at most. float64 has no budget, but must not spill.
# Xavier's and Kaiming's uniform are unclamped in float32 and clamped in half precision.
BUDGET = {"uniform": 16, "uniform_clamped": 18, "normal": 40, "truncated": 61, "truncated_tail": 66}
FLOAT8 = 18  # more than that, for rounding by integers
EXTRA = {"75": 2, "80": 1}  # older compilers' targets
BFLOAT16 = {"75": 12}  # what has no instructions for it rounds by integers too
# Threads that a multiprocessor holds.
THREADS = {"75": 1024, "86": 1536, "89": 1536, "120": 1536}
FLAGS = ["-std=c++17", "-O3", "--fmad=false", "-Werror", "all-warnings", f"-I{ROOT}/xinit/include"]
SOURCE = """
#include "{root}/csrc/cuda/kernels.cuh"
template <xinit::Kind kind, xinit::Dtype dtype>
void use(const xinit::CudaLaunch& launch) {{
  xinit::fill_contiguous<kind, dtype><<<1, 1>>>(launch);
  xinit::fill_window<kind, dtype><<<1, 1>>>(launch);
}}
void use_all(const xinit::CudaLaunch& launch) {{
  const xinit::Fill& fill = launch.job.fill;
  xinit::specialize(fill.distribution.kind, fill.dtype, [&](auto k, auto d) {{ use<k.value, d.value>(launch); }});
  xinit::with_bits_of(fill.dtype, [&](auto bits) {{
    xinit::digest_window<<<1, 1>>>(fill.window, &bits, xinit::DigestKey{{}}, nullptr);
  }});
}}
"""


def find_tool(name):
    """On the PATH, or as it comes with the triton package."""
    found = shutil.which(name)
    if found is None:
        for directory in map(Path, sys.path):
            candidate = directory / "triton/backends/nvidia/bin" / name
            if candidate.exists():
                return str(candidate)
    return found


def compile_kernels(arch, directory):
    """The cubin, and the compiler's resource report."""
    source, cubin = Path(directory) / "kernels.cu", Path(directory) / "kernels.cubin"
    source.write_text(SOURCE.format(root=ROOT))
    command = [find_tool("nvcc"), "-cubin", f"-arch=sm_{arch}", *FLAGS, "-Xptxas=-v", "-o", str(cubin), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return cubin, done.stderr


def kernel_name(mangled):
    """(way, kind, dtype) from a kernel's mangled name; the kernel for many fills has all kinds and dtypes in one."""
    if found := re.search(r"fill_(contiguous|window)ILNS_4KindE(\d)ELNS_5DtypeE(\d)E", mangled):
        return found[1], KINDS[int(found[2])], DTYPES[int(found[3])]
    if found := re.search(r"digest_windowI([htjm])E", mangled):
        return "digest", "all", {"h": "float8", "t": "bfloat16", "j": "float32", "m": "float64"}[found[1]]
    return "many", "all", "all"


def resources(report):
    """{kernel: registers and spilled bytes} from ptxas -v."""
    pattern = (
        r"Compiling entry function '(\S+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores.*?Used (\d+) registers"
    )
    return {
        kernel_name(name): {"registers": int(registers), "stack": int(stack), "spills": int(spills)}
        for name, stack, spills, registers in re.findall(pattern, report, re.DOTALL)
    }


def disassemble(cubin):
    """{kernel: [(address, instruction)]}."""
    text = subprocess.run(
        [find_tool("cuobjdump"), "-sass", str(cubin)], capture_output=True, text=True, check=True
    ).stdout
    functions = {}
    for name, body in re.findall(r"Function : (\S+)\n(.*?)(?=Function : |\Z)", text, re.DOTALL):
        lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", body)
        functions[kernel_name(name)] = [(int(a, 16), i.strip()) for a, i in lines]
    return functions


def main_loop(code):
    """The instructions of the natural loop that stores most: its body wherever the compiler has put it."""
    index = {address: i for i, (address, _) in enumerate(code)}
    successors, leaders = {}, {0}
    for i, (_, text) in enumerate(code):
        branch = re.search(r"\bBRA(?:\.\w+)*\s+(?:!?U?P\d+,\s*)?`?\(?\.?\w*\)?\s*(0x[0-9a-f]+)?", text)
        target = re.search(r"(0x[0-9a-f]+)\s*$", text) if "BRA" in text else None
        if branch and target:
            conditional = text.startswith("@") or re.search(r"BRA(\.\w+)*\s+!?U?P\d", text)
            successors[i] = [index[int(target.group(1), 16)]] + ([i + 1] if conditional else [])
            leaders |= {index[int(target.group(1), 16)], i + 1}
        elif re.match(r"EXIT|RET|BRX", text):
            successors[i] = []
        else:
            successors[i] = [i + 1]
    predecessors = {}
    for i, following in successors.items():
        for j in following:
            predecessors.setdefault(j, []).append(i)
    best = []
    for i, following in successors.items():
        for head in following:
            if head > i:
                continue
            body, todo = {head}, [i]  # the loop of the back edge i -> head
            while todo:
                j = todo.pop()
                if j not in body:
                    body.add(j)
                    todo += predecessors.get(j, [])
            loop = [code[j][1] for j in sorted(body)]
            # A larger set that merely contains the loop is entered from before its head.
            if min(body) >= head and stores(loop) > stores(best):
                best = loop
    return best


def stores(loop):
    return sum(int(m.group(1) or 32) // 8 for text in loop if (m := re.search(r"\bSTG\.E(?:\.(64|128))?\b", text)))


def measure(cubin, report, arch):
    """One record a kernel, of what compile_kernels gave."""
    threads = THREADS.get(arch, 2048)
    found, code = resources(report), disassemble(cubin)
    records = []
    for name in sorted(found, key=lambda k: (k[0], [*KINDS, "all"].index(k[1]), [*DTYPES, "all"].index(k[2]))):
        way, kind, dtype = name
        record = {"way": way, "kind": kind, "dtype": dtype, **found[name]}
        # 64 thousand registers, handed out by 8 a thread; threads in blocks of 256.
        record["occupancy"] = min(threads, 65536 // (-(-record["registers"] // 8) * 8) // 256 * 256) / threads
        record["local"] = sum(bool(re.search(r"\b(LDL|STL)\b", text)) for _, text in code[name])
        record["double"] = sum(bool(re.search(r"\bD(FMA|MUL|ADD|SETP|MNMX)\b", text)) for _, text in code[name])
        if way == "contiguous":
            loop = main_loop(code[name])
            elements = stores(loop) / {"float32": 4, "float64": 8, "float8": 1}.get(dtype, 2)
            record["instructions"] = round(len(loop) / elements, 2)
            record["store_bits"] = max(
                int(w or 32) for text in loop for w in re.findall(r"STG\.E(?:\.(128|64))?", text)
            )
        records.append(record)
    return records


def failures(records, arch):
    """What breaks a budget, in words."""
    for r in records:
        name = f"{r['way']} {r['kind']} {r['dtype']}"
        if r["spills"] or r["stack"] or r["local"]:
            yield f"{name}: {r['spills']} bytes spilled, {r['stack']} bytes of stack, {r['local']} local accesses"
        if r["dtype"] not in ("float64", "all") and r["double"]:
            yield f"{name}: {r['double']} double-precision instructions"
        if r["way"] == "contiguous" and r["dtype"] != "float64":
            if r["store_bits"] != (32 if r["dtype"] == "float8" else 128):  # of a block
                yield f"{name}: stores of {r['store_bits']} bits"
            budget = BUDGET[r["kind"]] + EXTRA.get(arch, 0) + FLOAT8 * (r["dtype"] == "float8")
            budget += BFLOAT16.get(arch, 0) * (r["dtype"] == "bfloat16")
            if r["instructions"] > budget:
                yield f"{name}: {r['instructions']} instructions an element, budget {budget}"
            if r["occupancy"] < 0.75:
                yield f"{name}: occupancy {r['occupancy']:.0%} by {r['registers']} registers"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="90")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        records = measure(*compile_kernels(args.arch, directory), args.arch)
    titles = ("sm_" + args.arch, "kind", "dtype", "instr/elem", "regs", "occup.", "spills", "store")
    print("{:<10} {:<16} {:<9} {:>10} {:>5} {:>7} {:>6} {:>6}".format(*titles))
    for r in records:
        count = f"{r['instructions']:.1f}" if "instructions" in r else ""
        print(
            f"{r['way']:<10} {r['kind']:<16} {r['dtype']:<9} {count:>10} {r['registers']:>5} {r['occupancy']:>7.0%} "
            f"{r['spills']:>6} {r.get('store_bits', ''):>6}"
        )
    if args.json:
        args.json.write_text(json.dumps({"arch": args.arch, "kernels": records}, indent=1) + "\n")
    broken = list(failures(records, args.arch))
    print(*broken, sep="\n")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
