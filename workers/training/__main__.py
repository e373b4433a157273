"""`python -m workers.training`: one training worker."""

from workers.training.worker import main

if __name__ == "__main__":
    main()
