"""Sticker sizes 1 and 2 (thesis): standard attack.

Smaller stickers, to p = 1 %.

    python -m experiments.thesis_sizes --data gtsrb32.zip

Expected: HC finds all down to p = 5 %, at size 1 down to 2 %. A row takes fifteen to
twenty-five minutes on two CPU cores, nearly all of it training.
"""

from experiments.command import main
from experiments.rows import PRINTED, Row, standard
from experiments.table import Table

TABLE = Table(
    "thesis_sizes",
    "Sticker sizes 1 and 2 (thesis): standard attack",
    [
        Row(
            *standard(printed["p"], printed["s"]),
            f"s = {printed['s']}, p = {printed['p']} %",
            printed,
        )
        for printed in PRINTED["thesis_sticker_sizes"]
    ],
)

if __name__ == "__main__":
    main(TABLE, __doc__)
