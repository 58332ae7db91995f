systemctl restart castore-fs
nix path-info -rsh "$hello"                 # valid still
"$hello/bin/hello"                          # what has come is here
nix-build --no-out-link greeting.nix        # Nix builds from it
