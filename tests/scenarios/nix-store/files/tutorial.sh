nix path-info -rsh "$hello"                 # valid, with all that it refers to
du -sh /var/lib/castore-fs/nix-store        # metadata only has come
"$hello/bin/hello"                          # now the program has, and runs

cat >greeting.nix <<NIX
derivation {
  name = "greeting";
  system = builtins.currentSystem;
  builder = "/bin/sh";
  args = [ "-c" "\${builtins.storePath "$hello"}/bin/hello >\$out" ];
}
NIX
greeting=$(nix-build --no-out-link greeting.nix)
cat "$greeting"
ls /run/castore-fs-nix-store/store          # the machine's own store has the result, and no copy of hello

nix-collect-garbage                         # the result goes, since no root names it
nix path-info "$hello"                      # what is below stays valid
