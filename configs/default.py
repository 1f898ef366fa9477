"""All fields, with the paper's values; the other files list only what they change.

Set a field in a config file or on the command line: `--config.batch_size=512`. The
comment after or above each field goes into docs/configs.md (`make docs`).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the fields that all configs share; `name` and `dataset` are empty."""
    c = ConfigDict()

    # Names and places.
    c.name = ""  # name of the run; the default workdir is `runs/<name>`
    # `yoochoose`, `diginetica`, `retailrocket`, `click_log`, `srgnn_pickles`,
    # `recbole_inter`, `tfds`, `synthetic`, or a data set named in configs/pickles.py or
    # configs/recbole_811.py
    c.dataset = ""
    c.data_dir = ""  # folder of the raw files; never written to
    c.prepared_dir = ""  # where prepared data is kept; empty: `~/.cache/srgnn_jax`

    # Reading the raw file.
    # name of the log in `data_dir`, or a pattern such as "*.parquet"; empty: all files
    # in it that have the columns
    c.log_file = ""
    c.header = ""  # "none": the file has no header; its columns are named 1, 2, ...
    c.tfds_name = ""  # such as "movielens/100k-ratings", optionally with ":0.1.1"
    c.session_column = ""  # column of the visit's id; empty: found by its usual names
    c.item_column = ""  # column of the item's id; empty: found by its usual names
    c.time_column = ""  # column of the click's time; empty: found by its usual names
    # column of the session's date, if `time_column` only orders its clicks, or of the
    # day, if `time_column` holds only times of day
    c.date_column = ""
    c.event_column = ""  # column of the event type; empty: found by its usual names
    c.events = ()  # values of `event_column` that count as clicks; empty: all rows
    # unit of numbers in `time_column`: "s", "ms", "us", "ns" since 1970, "days" of a
    # spreadsheet, "date" as 20240301, "any": by the size of each; empty: detected
    c.time_unit = ""
    # format of times that are not ISO, such as "%d/%m/%Y %H:%M"; without an hour it is
    # that of the day column
    c.time_format = ""
    c.separator = ""  # field separator of a text file; empty: detected from the header
    c.quoting = ""  # "none": quotes in a text file are ordinary characters
    c.encoding = ""  # encoding of a text file, such as "cp1252"; empty: UTF-8 or UTF-16
    # values that count as missing in the session, item and time columns
    c.missing_values = ("NULL", "null", "None", "NaN", "nan", "NA", "N/A", "\\N")
    c.on_bad_row = "error"  # or "skip": drops malformed rows and counts them

    # Visits: what counts as a session in your own log.
    c.session_gap_minutes = 0.0  # a longer pause starts a new session; 0: no limit
    c.session_by_day = False  # a new day, in UTC, starts a new session
    c.collapse_repeats = False  # keep only the first of consecutive clicks on one item
    c.max_session_clicks = 0  # drop longer sessions, likely robots; 0: no limit

    # Preparing the data.
    c.min_session_length = 2  # drop sessions with fewer clicks
    c.min_item_count = 5  # drop items with fewer clicks
    c.test_days = 1.0  # sessions of this many days at the end are test; 0: all train
    c.test_start = ""  # instead of `test_days`: ISO time, in UTC, at which test starts
    c.test_end = ""  # with `test_start`: leave out sessions from this ISO time on
    c.train_days = 0.0  # train on the sessions of this many days before test; 0: all
    c.train_fraction = 1.0  # keep only this last fraction of the training examples
    c.date_resolution_seconds = 0  # round session dates down to it; 0: no rounding
    c.recbole_time = "exact"  # or "float32", "normalized": round times as RecBole does
    c.max_session_length = 0  # the model sees this many last clicks of a prefix; 0: all

    # Model.
    c.embedding_size = 100  # dimension D of item and session embeddings
    c.step = 1  # propagation steps of the GNN
    # how to sum up a session: "attention" over its clicks, their "average", the last
    # click ("local"), or attention and the last click ("hybrid", the paper's)
    c.readout = "hybrid"
    c.normalize = False  # scale items to length 1 and sessions to length `scale`
    c.scale = 16.0  # length of session embeddings; used only with `normalize`
    c.item_dropout = 0.0  # dropout rate of the clicked items' embeddings in training
    c.reverse_positions = 0  # positions from the end that have an embedding; 0: none
    c.softmax_attention = False  # normalize attention over the clicks to sum to 1

    # Training.
    c.seed = 0  # seeds initial weights, order of examples and random draws
    c.runs = 1  # train seeds seed, seed + 1, ..., each in `<workdir>/seed_<seed>`
    c.epochs = 30  # at most this many; 0: prepare the data, print its counts and stop
    c.max_steps = 0  # stop after this many optimizer steps; 0: no limit
    c.batch_size = 100  # examples per step, over all devices
    c.loss_type = "CE"  # softmax over all items; or "BPR": one sampled negative
    c.score_padding = False  # include row 0 in the softmax, as RecBole does
    c.learning_rate = 1e-3  # Adam's learning rate, before any decay
    c.l2 = 1e-5  # coupled: added to the gradient before Adam's moments
    c.lr_decay_epochs = 3  # decay the learning rate every this many epochs; 0: never
    c.lr_decay = 0.1  # factor of each decay
    # average the parameters over this last share of the steps so far; 0: no averaging
    c.averaging = 0.0
    c.patience = 10  # stop after this many epochs without improvement; 0: never

    # Continuing from an earlier run, with newer clicks.
    # workdir of the earlier run, to start from its best checkpoint; empty: from scratch
    c.warm_start = ""
    # initial rows of items that the earlier run lacks: "uniform", drawn as usual, or
    # "neighbours", the mean of the items clicked just before and after them in training
    c.new_items = "uniform"
    # the learning rate's decay: "anew" starts it over, "go_on" also counts the earlier
    # run's epochs
    c.warm_start_schedule = "anew"

    # Evaluation.
    # the split that chooses the epoch: "valid", or "test" as in the papers' code;
    # "last": none; train on all sessions and keep the last epoch
    c.select_on = "valid"
    c.valid_fraction = 0.1  # last part of the training sessions, held out for "valid"
    c.select_by = "mrr@20"  # the metric that chooses the epoch
    c.ks = (5, 10, 20)  # list lengths for recall, mrr and ndcg
    c.eval_batch_size = 512  # rounded up to whole parts; changes no digit of a result
    # combine the trained network with neighbours and with repeat rates of the session's
    # own items: the weighted sum of their probabilities is evaluated, exported and
    # served (`srgnn_jax.evaluate.joined`)
    c.joined = False
    c.neighbours = "STAN"  # or "V-SKNN": method of finding and scoring neighbours
    # weight of the neighbours, below 1; if both weights are 0, validation chooses both
    c.neighbours_weight = 0.0
    c.repeats_weight = 0.0  # weight of repeat clicks, at most 1; see above

    # Running.
    # precision of matrix products; empty: exact float32; faster: "tensorfloat32" or
    # "bfloat16"
    c.compute_dtype = ""
    c.steps_per_call = 0  # steps that one call starts; 0: as suits the device
    c.max_scores = 0  # items times sessions a device scores at a time; 0: as suits it
    c.max_positions = 0  # clicks a device processes at a time; 0: as suits it
    # keep a split of up to this many clicks on the device; send a longer one in batches
    c.max_clicks = 2**28
    # "jit": one device; "pmap": those of this process; "mesh": those of all processes;
    # "auto": whichever suits
    c.parallel = "auto"
    c.mesh_shape = (0, 0)  # devices (data, items) that split the batch and the table
    c.log_every_steps = 100  # steps per record in metrics.jsonl
    c.checkpoint_every_steps = 0  # also save every this many steps; 0: only by epoch
    c.checkpoint_every_minutes = 0.0  # also save every this many minutes; 0: never
    c.progress = True  # show progress bars
    return c.lock()
