"""From run records (records.py) over one long table of evaluations (frame.py) to tables, intervals,
costs and figures; places.py tells own runs from published ones. Imports scoring, config, io and
figures, never torch."""

from distilwhisper_lib import hand_on

__all__, __getattr__, __dir__ = hand_on(
    __name__,
    {
        "records": ("load_records", "read_record", "write_record"),
        "frame": ("evaluations",),
        "tables": ("own_table", "results_table"),
        "places": ("find_records",),
        "exports": ("formatted", "to_latex", "to_markdown", "write_tables"),
        "significance": ("resample",),
        "costs": (
            "cost_table",
            "forgetting_table",
            "formatted_costs",
            "overview",
            "size_and_share",
        ),
        "plots": (
            "error_kinds_bars",
            "interval_plot",
            "length_lines",
            "results_bars",
            "training_curves",
        ),
        "size_plots": ("size_and_share_plot",),
    },
)
