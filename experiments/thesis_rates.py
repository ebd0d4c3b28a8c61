"""Attack success by rate (thesis): standard attack, 3x3 sticker.

How few images make a backdoor: from two images on (0.125 %).

    python -m experiments.thesis_rates --data gtsrb32.zip

The thesis: ASR 34 at 0.125 %, 100 from 0.5 % on. After two epochs ours is 34 at 2 %
and 95 at 5 %. A row takes fifteen to twenty-five
minutes on two CPU cores, nearly all of it training.
"""

from experiments.command import main
from experiments.rows import PRINTED, Row, standard
from experiments.table import Table

TABLE = Table(
    "thesis_rates",
    "Attack success by rate (thesis): standard attack, 3x3 sticker",
    [
        *(
            Row(
                *standard(printed["p"]),
                f"p = {printed['p']} %",
                printed,
            )
            for printed in PRINTED["thesis_asr_by_rate_s3"]
        ),
        *(Row(*standard(p), f"p = {p} %") for p in (2, 10, 15, 33)),
    ],
)

if __name__ == "__main__":
    main(TABLE, __doc__)
