"""A PyTorch DataLoader over a Stoker dataset: `STOKER_URL=... python torch_loader.py DATASET`.

The data set opens nothing until a worker asks, so it works under fork, forkserver and spawn. `__getitems__` is called by the
stock DataLoader with a whole batch: one round trip an executor instead of one a file.
"""

import sys
from collections.abc import Sequence

import torch.utils.data

from stoker.client.api import Client


class Files(torch.utils.data.Dataset):
    """Each item is the bytes of one file."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._dataset = None

    def _opened(self):
        if self._dataset is None:
            self._dataset = Client().dataset(self.name)
        return self._dataset

    def __len__(self) -> int:
        return len(self._opened().paths)

    def __getitem__(self, row: int) -> bytes:
        return bytes(self._opened().read(row))

    def __getitems__(self, rows: Sequence[int]) -> list[bytes]:
        return [bytes(data) for data in self._opened().read_many(rows)]


if __name__ == "__main__":
    loader = torch.utils.data.DataLoader(
        Files(sys.argv[1]), batch_size=256, shuffle=True, num_workers=4, collate_fn=list
    )
    print(sum(len(data) for batch in loader for data in batch), "bytes read")
