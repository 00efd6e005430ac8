"""Notation of equations, as text and in LaTeX: letters of columns, symbols, numbers."""

# Column -> its letter in equations, as text and in LaTeX.
LETTERS = {
    "n_non_embedding": ("N", "N"),
    "tokens": ("D", "D"),
    "hidden_over_sqrt_n": ("x", "x"),
    "mlp_to_attention": ("r", "r"),
    "gqa": ("q", "q"),
    "aspect_ratio": ("R", "R"),
    "num_hidden_layers": ("l", r"\ell"),
    "head_dim": ("h", "h"),
    "hidden_size": ("w", "w"),
    "sparsity": ("s", "s"),
    "expert_sparsity": ("S", "S"),
    "active_experts": ("m", "m"),
    "granularity": ("g", "g"),
    "best_loss": ("L_opt", r"L_\mathrm{opt}"),
}
# Exponents of sparsity -> their symbols in LaTeX.
EXPONENTS = {
    "leverage": "a",
    "leverage_compute": "d",
    "leverage_granularity": "b",
    "leverage_curve": "c",
}
KINDS = {"curvature": "k", "slope": "c", "effect": "c", "drift": "gamma", "bend": "eta"}
GREEK = ("alpha", "beta", "gamma", "delta", "eta", "epsilon", "zeta", "kappa")


def symbol(name: str, *, latex: bool) -> str:
    """Return the symbol of a parameter: alpha, k_r (curvature in r), r* (optimum), γ_r (drift)."""
    if name in GREEK:
        return f"\\{name}" if latex else name
    if name == "beta_n":  # the slope of beta in ln N
        return r"\beta_N" if latex else name
    if name in EXPONENTS:
        return EXPONENTS[name]
    for column, (text, tex) in LETTERS.items():
        if name.startswith(f"{column}_"):
            kind = name.removeprefix(f"{column}_")
            letter = tex if latex else text
            plain = KINDS.get(kind, kind)
            if kind == "optimum":
                return f"{letter}^*" if latex else f"{letter}*"
            greek = f"\\{plain}" if latex and plain in GREEK else plain
            return f"{greek}_{{{letter}}}" if latex else f"{greek}_{letter}"
    return name.replace("_", r"\_") if latex else name


def letter(column: str, *, latex: bool) -> str:
    """Return the letter of a column in equations, or its name if it has no letter."""
    if column not in LETTERS:
        return rf"\mathrm{{{column}}}".replace("_", r"\_") if latex else column
    return LETTERS[column][1 if latex else 0]


def number(value: float, *, latex: bool) -> str:
    """Format a fitted number with five significant digits; LaTeX gets powers of ten."""
    text = f"{value:.5g}"
    if latex and "e" in text:
        digits, power = text.split("e")
        return rf"{digits} \times 10^{{{int(power)}}}"
    return text
