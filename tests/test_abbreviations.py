"""Abbreviations by the rule of Schwartz and Hearst: pairs as authors write them, and brackets that define
none.
"""

import pytest

from biogpt.text.abbreviations import abbreviations


def pairs(text: str) -> list[tuple[str, str]]:
    return [(text[slice(*a.short)], text[slice(*a.long)]) for a in abbreviations(text)]


@pytest.mark.parametrize(
    ("text", "short", "long"),
    [
        ("The role of tumour necrosis factor (TNF) in sepsis.", "TNF", "tumour necrosis factor"),
        ("We used TNF (tumour necrosis factor) at 5 ng/ml.", "TNF", "tumour necrosis factor"),
        ("Two single nucleotide polymorphisms (SNPs) were found.", "SNPs", "single nucleotide polymorphisms"),
        ("Each tumour-associated macrophage (TAMs) was counted.", "TAMs", "tumour-associated macrophage"),
        ("Heat shock protein 70 (Hsp70) rose.", "Hsp70", "Heat shock protein 70"),
        ("In mitochondrial DNA (mtDNA) of mice.", "mtDNA", "mitochondrial DNA"),
        ("Levels of prostaglandin E 2 (PGE(2)) rose.", "PGE(2)", "prostaglandin E 2"),
        ("Some (as epidermal growth factor [EGF]) bind.", "EGF", "epidermal growth factor"),
        ("Films of poly(lactic-co-glycolic acid) (PLGA) swell.", "PLGA", "poly(lactic-co-glycolic acid)"),
        ("Non-small cell lung cancer (NSCLC; stage IV) spreads.", "NSCLC", "Non-small cell lung cancer"),
        ("An insert of 120 base pairs (bp) was cut.", "bp", "base pairs"),
        (
            "The enzyme-linked\nimmunosorbent assay (ELISA) failed.",
            "ELISA",
            "enzyme-linked\nimmunosorbent assay",
        ),
        ("A magnetic resonance imaging (MRI, 3 T) scan.", "MRI", "magnetic resonance imaging"),
        ("😀 The γ-aminobutyric acid (GABA) of rats.", "GABA", "γ-aminobutyric acid"),
    ],
)
def test_a_definition_is_found_with_its_exact_places(text: str, short: str, long: str) -> None:
    assert pairs(text) == [(short, long)]


@pytest.mark.parametrize(
    "text",
    [
        "As Smith and others (2003) have shown.",
        "The figure shows growth (Fig. 1) of cells.",
        "It fell with the measured amount (mean) of drug.",
        "It was significant (p < 0.05) in mice (n = 12).",
        "Protein kinase C (PKG) was not.",
        "The odds ratio (95% CI) was 2.",
        "TNF (TNF) is TNF.",
        "Interleukin rose. (IL) was low.",
        "Cells of the liver (see Table 2) died.",
        "A bracket without an end (TNF of tumour necrosis factor.",
    ],
)
def test_what_stands_in_brackets_and_defines_nothing_is_left(text: str) -> None:
    assert pairs(text) == []


def test_a_short_form_is_found_again_as_a_word_of_its_own() -> None:
    text = "SNPs: single nucleotide polymorphisms (SNPs). One SNP, two SNPs; SNP-array, not SNPx. 😀 SNP"
    [found] = abbreviations(text)
    assert [text[a:b] for a, b in found.again] == ["SNPs", "SNP", "SNPs", "SNP", "SNP"]
    assert found.short not in found.again
    again = "Tumour necrosis factor (TNF) is not tissue nitrogen fraction (TNF)."
    assert pairs(again) == [("TNF", "Tumour necrosis factor")], "the first definition counts"


def test_who_looks_can_end_the_search() -> None:
    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        abbreviations("Tumour necrosis factor (TNF).", stop)
