# Nix builds and writes it: a closure of three, compressed in three ways, and a path for each thing that can go wrong.
. "$SCENARIOS/binary-cache-store/files/kit.sh"
install -m 600 "$SCENARIOS/nix-store/files/secret-key" "$work/secret-key"
mkdir -p "$control" "$written"
cat >"$work/closure.nix" <<NIX
let
  make = name: text: derivation {
    inherit name; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" text ];
  };
in rec {
  dep = make "dep" "echo dep >\$out";
  mid = make "mid" "$(pad 12)echo \$x \${dep} >\$out";
  top = make "top" "$(pad 16)echo \$x \${mid} >\$out";
}
NIX
for pair in dep:xz mid:zstd top:none; do
    name=${pair%:*}
    build_elsewhere "$work/closure.nix" -A "$name" >"$work/$name"
    write "${pair#*:}" "$(path_of "$name")"
done
for name in unsigned forged cut gone absent; do
    publish "$name" "$(pad 10)echo \$x $name >\$out" zstd
done
# 15 MiB each, and not compressed, so that a place in the stream is one in the contents.
for name in altered broken returns lost stalled; do
    publish "$name" "$(pad 20)echo \$x $name >\$out" none
done
start_far
