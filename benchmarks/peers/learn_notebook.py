"""The teaching notebook as it stands: its Dataset, its DataLoader, its network and loop, fp32, evaluated each epoch."""

from _learning import arguments, scorer, train_epochs
from _notebook import DatasetSeg
from _training import notebook_loop
from torch.utils.data import DataLoader

from petseg.model.networks import SeedUNet

SIZE = 100

args = arguments()
net = SeedUNet()
dataset = DatasetSeg(args.data / "files" / "images", args.data / "files" / "masks", SIZE)
loader = DataLoader(dataset, batch_size=32, shuffle=True)
train_epochs(args, loader, notebook_loop(net), net, scorer(args, net, SIZE))
