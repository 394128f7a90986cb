"""`dankai`, whose `up` never gives up: what ends six times in ten minutes here stands for months.

As shipped it stops everything when a service ended three times in ten minutes (tests/flows/test_supervisor).
"""

import flows.supervisor
from flows.cli import main

if __name__ == "__main__":
    flows.supervisor.ENDS_WITHIN_S = 0.0
    main()
