"""The methods of training as TRL's trainers: a file each, imported when it is used."""
