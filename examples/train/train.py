"""Fits y = 3x + 7 by gradient descent, step by step, and goes on from its last checkpoint.

The arithmetic is that of whole numbers, so that the result is the same to the last digit however often the program was
interrupted, and the same as that of train.sh, which does the same without Python.
"""

import os
import signal
import time

STEPS = int(os.environ.get("STEPS", "200"))
PAUSE = float(os.environ.get("STEP_SECONDS", "0.05"))
SAVE_EVERY = int(os.environ.get("SAVE_EVERY", "10"))
FOLDER = os.environ.get("SKYPILOT_CHECKPOINT_DIR", "ckpt")
STATE = os.path.join(FOLDER, "state")
LEDGER = os.environ.get("LEDGER")  # every step leaves a line there: tests read it
ATTEMPT = os.environ.get("SKYPILOT_ATTEMPT", "1")

asked = False


def ask(*_):
    global asked
    asked = True


def quotient(a, b):
    """a / b rounded towards zero, as the shell does it."""
    return abs(a) // b * (1 if a >= 0 else -1)


def save(step, w, b, seed):
    """Writes beside and renames: whoever copies the folder sees the old state or the new one, never half of one."""
    with open(STATE + ".tmp", "w") as f:
        f.write(f"{step} {w} {b} {seed}\n")
        f.flush()
        os.fsync(f.fileno())
    os.replace(STATE + ".tmp", STATE)


def main():
    global asked
    os.makedirs(FOLDER, exist_ok=True)
    signal.signal(signal.SIGUSR1, ask)
    step, w, b, seed = 0, 0, 0, 42
    if os.path.exists(STATE):
        with open(STATE) as f:
            step, w, b, seed = map(int, f.read().split())
        print(f"goes on after step {step}", flush=True)
    while step < STEPS:
        seed = (seed * 1103515245 + 12345) % 2147483648
        x = seed // 65536 % 10
        error = w * x + b - (3000 * x + 7000)
        w -= quotient(error * x, 100)
        b -= quotient(error, 20)
        step += 1
        if LEDGER:
            with open(LEDGER, "a") as f:
                f.write(f"{ATTEMPT} {step}\n")
        if asked or step % SAVE_EVERY == 0:
            asked = False
            save(step, w, b, seed)
        time.sleep(PAUSE)
    save(step, w, b, seed)
    print(f"result: y = {w}/1000 x + {b}/1000 after {step} steps", flush=True)
    if LEDGER:
        with open(LEDGER, "a") as f:
            f.write(f"result {w} {b}\n")


main()
