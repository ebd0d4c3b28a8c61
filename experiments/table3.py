"""Table 3: clustering the images themselves.

The standard attack at p = 33 %; the run is that of Table 1.

    python -m experiments.table3 --data gtsrb32.zip

Expected: ACC 65 and 63, no use. A row takes fifteen to twenty-five minutes on two CPU
cores, nearly all of it training.
"""

from experiments.command import main
from experiments.rows import PRINTED, Row, standard
from experiments.table import Table

TABLE = Table(
    "table3",
    "Table 3: clustering the images themselves",
    [
        Row(
            *standard(33),
            "p = 33 %",
            {"asr": 100, **PRINTED["table3_raw_standard_s3_p33"]},
        )
    ],
    ("raw_pca", "raw_ica"),
)

if __name__ == "__main__":
    main(TABLE, __doc__)
