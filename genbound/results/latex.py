"""Cells of tables as LaTeX."""

from __future__ import annotations

import re

_SPECIAL = {
    "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "σ": r"$\sigma$", "γ": r"$\gamma$", "δ": r"$\delta$", "ε": r"$\varepsilon$", "±": r"$\pm$", "½": r"$\tfrac12$",
    "‖": r"$\|$", "√": r"$\sqrt{}$", "Σ": r"$\Sigma$", "×": r"$\times$", "–": "--", "⁺": r"$^+$", "ᵀ": r"$^\top$",
    "≥": r"$\ge$",
    "≤": r"$\le$", "…": r"\ldots{}", "→": r"$\to$", "·": r"$\cdot$", "²": r"$^2$", "−": r"$-$", "∞": r"$\infty$",
    "λ": r"$\lambda$",
}  # fmt: skip


def latex_text(text: str) -> str:
    """Text with LaTeX's special characters written out."""
    parts = ["".join(_SPECIAL.get(character, character) for character in part) for part in text.split("--")]
    return "-{}-".join(parts)  # two hyphens of an option are no dash


def latex_number(text: str) -> str:
    r"""``8.28e+36`` as ``$8.28 \times 10^{36}$``; intervals likewise."""
    if not re.search(r"\d", text) or re.search(r"[\\{}$&#_^~]", text):
        return latex_text(text)
    inner = re.sub(r"([\d.]+)e([+-]?)0*(\d[\d.]*)", lambda m: f"{m[1]} \\times 10^{{{m[2].strip('+')}{m[3]}}}", text)
    inner = inner.replace("≤ ", r"\le ").replace("≥ ", r"\ge ")
    inner = re.sub(r" (?=\[)", r"\\ ", inner)  # mathematics drops plain spaces
    return f"${inner.replace('%', chr(92) + '%')}$"
