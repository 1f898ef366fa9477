"""Every field there is, with the paper's values; the other files state differences.

A field is set in a config file or on the command line: `--config.batch_size=512`. Each
has its comment, behind it or above it; docs/configs.md is made of them (`make docs`).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the fields that all configs share; `name` and `dataset` are empty."""
    c = ConfigDict()

    # Names and places.
    c.name = ""  # of the run: the default workdir is `runs/<name>`
    # `yoochoose`, `diginetica`, `retailrocket`, `click_log`, `srgnn_pickles`,
    # `recbole_inter`, `tfds`, `synthetic`, or a set that configs/pickles.py or
    # configs/recbole_811.py names
    c.dataset = ""
    c.data_dir = ""  # folder of the raw files, only ever read
    c.prepared_dir = ""  # where prepared data is kept; empty: `~/.cache/srgnn_jax`

    # Reading the raw file.
    # name of the log in `data_dir`, or a pattern such as "*.parquet"; empty: all files
    # there that have the columns
    c.log_file = ""
    c.header = ""  # "none": the file has no header, and columns are named 1, 2, ...
    c.tfds_name = ""  # of `tfds`: "movielens/100k-ratings", or with ":0.1.1" behind
    c.session_column = ""  # names the visit; empty: found by its usual names
    c.item_column = ""  # names what was clicked; empty: found by its usual names
    c.time_column = ""  # tells the time; empty: found by its usual names
    # a session's date, where `time_column` only orders its clicks; the day, where that
    # holds times of a day
    c.date_column = ""
    c.event_column = ""  # tells what a click was; empty: found by its usual names
    c.events = ()  # the values of it that count as clicks; none: all rows do
    # what numbers in `time_column` count: "s", "ms", "us", "ns" since 1970, "days" of a
    # spreadsheet, "date" as 20240301, "any": each by its size; empty: told by them
    c.time_unit = ""
    c.time_format = ""  # of times that are not ISO, such as "%d/%m/%Y %H:%M"
    c.separator = ""  # between fields of a text file; empty: told from the header
    c.quoting = ""  # "none": quotes in a text file are text like any other
    c.encoding = ""  # of a text file, such as "cp1252"; empty: UTF-8, or as it says
    # words that stand for none in the columns of session, item and time
    c.missing_values = ("NULL", "null", "None", "NaN", "nan", "NA", "N/A", "\\N")
    c.on_bad_row = "error"  # or "skip": drop malformed rows and count them

    # Visits: what a session is, in a log of one's own.
    c.session_gap_minutes = 0.0  # a longer pause starts another session; 0: none does
    c.session_by_day = False  # so does another day, in UTC
    c.collapse_repeats = False  # of clicks in a row on one item only the first counts
    c.max_session_clicks = 0  # longer sessions are dropped, as robots'; 0: none

    # Preparing the data.
    c.min_session_length = 2  # sessions with fewer clicks are dropped
    c.min_item_count = 5  # items with fewer clicks are dropped
    c.test_days = 1.0  # sessions of the last so many days are test; 0: all train
    c.test_start = ""  # instead: an ISO time in UTC, from which on sessions are test
    c.test_end = ""  # with `test_start`: an ISO time, from which on they are left out
    c.train_days = 0.0  # train on sessions of the last so many days before test; 0: all
    c.train_fraction = 1.0  # keep only this last fraction of the training examples
    c.date_resolution_seconds = 0  # round session dates down to it; 0: keep as they are
    c.recbole_time = "exact"  # or "float32", "normalized": rounded as RecBole does it
    c.max_session_length = 0  # last clicks of a prefix that the model sees; 0: all

    # Model.
    c.embedding_size = 100  # numbers of an item's and of a session's embedding
    c.step = 1  # propagation steps of the GNN
    # what sums up a session: "attention" over its clicks, their "average", the last
    # click, "local", or "hybrid", the paper's: attention and the last click
    c.readout = "hybrid"
    c.normalize = False  # scale items to the length 1, and sessions to `scale`
    c.scale = 16.0  # the length of sessions; without `normalize` it plays no part
    c.item_dropout = 0.0  # share of the clicked items' numbers to drop in training
    c.reverse_positions = 0  # last clicks that attention tells apart by place; 0: none
    c.softmax_attention = False  # have the clicks' attention sum to 1

    # Training.
    c.seed = 0  # of the weights, the order of the examples and what is drawn
    c.runs = 1  # with the seeds seed, seed + 1, ...: each in `<workdir>/seed_<seed>`
    c.epochs = 30  # at most; 0: prepare the data, print its counts and stop
    c.max_steps = 0  # stop after so many optimizer steps; 0: no such limit
    c.batch_size = 100  # examples of a step, on all devices together
    c.loss_type = "CE"  # softmax over all items, or "BPR": one sampled negative
    c.score_padding = False  # let row 0 take part in the softmax, as RecBole does
    c.learning_rate = 1e-3  # of Adam, before any decay
    c.l2 = 1e-5  # coupled: joins the gradient before Adam's moments
    c.lr_decay_epochs = 3  # decay the learning rate after so many epochs; 0: never
    c.lr_decay = 0.1  # what the decay multiplies it by
    # last share of the steps so far that the parameters are averaged over; 0: none are
    c.averaging = 0.0
    c.patience = 10  # stop after so many epochs without a better one; 0: never

    # Going on from an earlier run, with newer clicks.
    # workdir of that run, whose best checkpoint training begins with; empty: none
    c.warm_start = ""
    # rows that items begin with which it lacks: "uniform", drawn as always, or
    # "neighbours", the mean of the items clicked just before and after them in training
    c.new_items = "uniform"
    # the learning rate's decay begins "anew", or is to "go_on" from that run's epochs
    c.warm_start_schedule = "anew"

    # Evaluation.
    # the split that chooses the epoch: "valid", or "test" as in the papers' codes;
    # "last": none does, all sessions are trained on and the last epoch is taken
    c.select_on = "valid"
    c.valid_fraction = 0.1  # last part of the training sessions, held out for "valid"
    c.select_by = "mrr@20"  # the metric that chooses the epoch
    c.ks = (5, 10, 20)  # list lengths of recall, mrr and ndcg
    c.eval_batch_size = 512  # rounded up to whole parts; changes no digit
    # join the trained network with neighbours, and with how often the session's own
    # items come again: evaluated, exported and served are sums of their probabilities
    # (`srgnn_jax.evaluate.joined`)
    c.joined = False
    c.neighbours = "STAN"  # or "V-SKNN": how neighbours are found and scored
    c.neighbours_weight = 0.0  # their share, below 1; both 0: validation chooses both
    c.repeats_weight = 0.0  # that of clicks that come again, at most 1; likewise

    # Running.
    # of matrix products; empty: exact float32; "tensorfloat32", "bfloat16": faster
    c.compute_dtype = ""
    c.steps_per_call = 0  # steps that the host starts at once; 0: as suits the device
    c.max_scores = 0  # items times sessions that a device scores at a time; 0: likewise
    c.max_positions = 0  # clicks that a device works on at a time; 0: likewise
    # clicks of a split that a device keeps; of a longer split it is sent batches
    c.max_clicks = 2**28
    # "jit": one device, "pmap": all of this process, "mesh": all, "auto": as it suits
    c.parallel = "auto"
    c.mesh_shape = (0, 0)  # (data, items): devices that share a batch, the item table
    c.log_every_steps = 100  # steps of a record in metrics.jsonl
    c.checkpoint_every_steps = 0  # beside every epoch's end; 0: only then
    c.checkpoint_every_minutes = 0.0  # the same by the clock; 0: never
    c.progress = True  # show progress bars
    return c.lock()
