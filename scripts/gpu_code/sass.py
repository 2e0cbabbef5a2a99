"""Loops and instruction mixes of machine code."""
import collections
import dataclasses


@dataclasses.dataclass
class Instruction:
    opcode: str  # "LDG.E.128"
    operands: str = ""
    predicate: str = ""


def without_padding(code):
    """Functions end with a branch to itself and NOPs."""
    end = len(code)
    while end and (code[end - 1].opcode == "NOP" or (
            code[end - 1].opcode == "BRA" and code[end - 1].operands == hex((end - 1) * 16))):
        end -= 1
    return code[:end]


def does_nothing(code):
    """The body of a kernel that its chip cannot run."""
    return all(i.opcode in ("EXIT", "BRA") or i.opcode.startswith(("MOV", "LDC", "IMAD.MOV"))
               for i in code)


TENSOR = ("HMMA", "IMMA", "QMMA", "OMMA", "DMMA", "HGMMA", "IGMMA", "QGMMA", "UTCHMMA", "UTCQMMA",
          "UTCIMMA", "UTCOMMA")
# Opcodes that are counted by the bits of one access as well: LDG.128.
SIZED = ("LDG", "STG", "LDS", "STS", "LDL", "STL", "LD", "ST", "LDGSTS")
WIDE = (128, 256)
WIDTHS = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128, "256": 256}


def access_bits(opcode):
    """Bits of one lane's access: 32 unless the opcode says otherwise."""
    return next((WIDTHS[part] for part in opcode.split(".")[1:] if part in WIDTHS), 32)


def kind_of(opcode):
    """The word under which an instruction is counted: "HMMA", "LDG.128", "FFMA"."""
    first = opcode.split(".")[0]
    return f"{first}.{access_bits(opcode)}" if first in SIZED else first


class Mix(collections.Counter):
    """Instructions by kind."""

    def __init__(self, instructions=()):
        super().__init__(kind_of(i.opcode) for i in instructions)

    def of(self, opcode, *bits):
        """LDG of any width: of("LDG"); of the named ones: of("LDG", 128, 256)."""
        if bits:
            return sum(self[f"{opcode}.{b}"] for b in bits)
        return self[opcode] + sum(n for kind, n in self.items() if kind.startswith(opcode + "."))

    @property
    def tensor(self):
        return sum(self[kind] for kind in TENSOR)

    @property
    def local(self):
        return self.of("LDL") + self.of("STL")

    # Loads of global memory by 16 bytes of a lane or more, and all others. A bulk copy is one
    # instruction for any number of bytes.
    @property
    def wide(self):
        return self.of("LDG", *WIDE) + self.of("LDGSTS", *WIDE) + self["UBLKCP"]

    @property
    def narrow(self):
        return self.of("LDG") + self.of("LDGSTS") - self.of("LDG", *WIDE) - self.of("LDGSTS", *WIDE)

    @property
    def wide_shared(self):  # loads of shared memory; ldmatrix takes 16 bytes a lane
        return self.of("LDS", *WIDE) + self.of("LDSM")

    @property
    def narrow_shared(self):
        return self.of("LDS") - self.of("LDS", *WIDE)

    @property
    def barriers(self):
        return self.of("BAR") + self.of("SYNCS")


# -- Control flow.

def branch_target(instruction):
    """Index of the instruction that a branch names, or None."""
    last = instruction.operands.split(",")[-1].strip()
    return int(last, 16) // 16 if last.startswith("0x") else None


def successors(code):
    """[indices that may come next] per instruction.

    Warps that diverge inside a warp-wide instruction leave by BRA.DIV for a copy of it out of the
    way; that is no loop, so the branch is not followed. A BSYNC goes on where its BSSY says.
    """
    following = []
    meeting = {}  # barrier register -> where its threads meet
    for i, instruction in enumerate(code):
        opcode, after = instruction.opcode, [i + 1] if i + 1 < len(code) else []
        first = opcode.split(".")[0]
        if first == "BSSY":
            meeting[instruction.operands.split(",")[0]] = branch_target(instruction)
        if first == "BRA" and not opcode.startswith("BRA.DIV"):
            always = not instruction.predicate and "," not in instruction.operands and (
                opcode in ("BRA", "BRA.U"))
            target = branch_target(instruction)
            following.append(([] if always else after) + ([] if target is None else [target]))
        elif first in ("EXIT", "RET", "KILL", "BPT"):
            following.append(after if instruction.predicate else [])
        elif first == "BSYNC" and meeting.get(instruction.operands, i + 1) != i + 1:
            following.append([meeting[instruction.operands]] + (
                after if instruction.predicate else []))
        else:
            following.append(after)
    return following


class Blocks:
    """Basic blocks: block b is instructions [first[b], first[b + 1])."""

    def __init__(self, code):
        following = successors(code)
        leaders = {0}
        for i, after in enumerate(following):
            if after != [i + 1]:
                leaders.update(after)
                leaders.add(i + 1)
        self.first = sorted(leader for leader in leaders if leader < len(code)) + [len(code)]
        block_at = {leader: b for b, leader in enumerate(self.first)}
        self.after = [[block_at[i] for i in following[self.first[b + 1] - 1]]
                      for b in range(len(self.first) - 1)]

    def reverse_postorder(self):
        order, seen, stack = [], {0}, [(0, iter(self.after[0]))]
        while stack:
            block, rest = stack[-1]
            for next_block in rest:
                if next_block not in seen:
                    seen.add(next_block)
                    stack.append((next_block, iter(self.after[next_block])))
                    break
            else:
                order.append(block)
                stack.pop()
        return order[::-1]


def natural_loops(code):
    """[set of instruction indices], one per loop header, largest first."""
    if not code:
        return []
    blocks = Blocks(code)
    order = blocks.reverse_postorder()
    place = {block: i for i, block in enumerate(order)}
    before = collections.defaultdict(list)
    for block in order:
        for after in blocks.after[block]:
            before[after].append(block)
    dominator = {0: 0}  # the immediate one, by Cooper, Harvey and Kennedy

    def common(a, b):
        while a != b:
            while place[a] > place[b]:
                a = dominator[a]
            while place[b] > place[a]:
                b = dominator[b]
        return a

    changed = True
    while changed:
        changed = False
        for block in order[1:]:
            known = [b for b in before[block] if b in dominator]
            best = known[0]
            for other in known[1:]:
                best = common(best, other)
            changed |= dominator.get(block) != best
            dominator[block] = best

    def dominates(a, b):
        while place[b] > place[a]:
            b = dominator[b]
        return a == b

    bodies = collections.defaultdict(set)  # header -> blocks
    for block in order:
        for header in blocks.after[block]:
            if place[header] <= place[block] and dominates(header, block):
                body, waiting = bodies[header] | {header}, [block]
                while waiting:
                    member = waiting.pop()
                    if member not in body:
                        body.add(member)
                        waiting.extend(before[member])
                bodies[header] = body
    loops = [{i for b in body for i in range(blocks.first[b], blocks.first[b + 1])}
             for body in bodies.values()]
    return sorted(loops, key=len, reverse=True)


def hot_loop(code):
    """(Mix of the hot loop, loop depth), or (Mix of everything, 0) for a straight line.

    The hot loop is found from the outside: the loop with the most work, then the loop inside it
    that still holds half of that, and so on. Work is what there is of tensor-core products, else
    16-byte loads of global memory, else instructions.
    """
    whole = Mix(code)
    measures = (lambda mix: mix.tensor, lambda mix: mix.wide, Mix.total)
    measure = next((m for m in measures if m(whole)), Mix.total)
    loops = [(body, Mix(code[i] for i in sorted(body))) for body in natural_loops(code)]
    depth, inside, work, hot = 0, None, 0, whole
    while True:
        inner = [(measure(mix), len(body), body, mix) for body, mix in loops
                 if inside is None or body < inside]
        inner.sort(key=lambda loop: loop[:2], reverse=True)
        if not inner or inner[0][0] == 0 or 2 * inner[0][0] < work:
            return hot, depth
        work, _, inside, hot = inner[0]
        depth += 1
