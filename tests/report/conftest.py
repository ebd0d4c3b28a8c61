from small_runs import config as config
from small_runs import only as only
from small_runs import small as small
