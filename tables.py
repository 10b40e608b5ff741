"""Numbers -> tables in markdown."""


def markdown(rows):
    """Rows of cells, the first the heads."""
    heads, *others = rows
    lines = [heads, ["---"] * len(heads), *others]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def faithfulness(report):
    """visualize.py faithfulness's report as markdown: areas, and differences to random orders."""
    kinds = ("mean_deletion", "mean_insertion", "blur_deletion", "blur_insertion")
    lines = [("map", "deletion, mean", "insertion, mean", "deletion, blur", "insertion, blur")]
    for row in report["rows"]:
        cells = [row["map"]]
        for kind in kinds:
            cell = row[kind]
            words = f"{cell['area']:.3f}"
            if "ci95" in cell:
                low, high = cell["ci95"]
                words += f" ({low:+.3f} to {high:+.3f})"
                better = high < 0 if kind.endswith("deletion") else low > 0
                words = f"**{words}**" if better else words
            cells.append(words)
        lines.append(cells)
    return markdown(lines)
