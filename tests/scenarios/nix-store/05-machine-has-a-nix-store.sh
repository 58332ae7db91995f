# On NixOS all of it is there, by services.castore-fs.nixStore. Elsewhere it is arranged here, from the units as the
# module writes them, as a switch does it where the daemon runs already.
. "$SCENARIOS/nix-store/files/kit.sh"
install -m 600 "$SCENARIOS/nix-store/files/secret-key" "$work/secret-key"
if ! test -e /run/current-system; then
    systemctl start castore-fs.service
    before=$(pid)
    cp "$SCENARIOS/nix-store/files/config.toml" /etc/castore-fs/config.toml
    units=/run/systemd/system
    mkdir -p "$units/castore-fs.service.d"
    as_here "$SCENARIOS/nix-store/files/castore-fs.service" >"$units/castore-fs.service.d/nix-store.conf"
    as_here "$SCENARIOS/nix-store/files/castore-fs-nix-store.socket" >"$units/castore-fs-nix-store.socket"
    systemctl daemon-reload
    systemctl restart castore-fs.service
    another_than "$before" || fail "the daemon that ran does not run with the socket"
    systemctl is-active castore-fs-nix-store.socket
    unit=$SCENARIOS/nix-store/files/castore-fs-nix-store.service make_nix_store
fi
start_far
dep=$(publish dep 'echo dep >$out')
cat >"$work/closure.nix" <<NIX
let
  make = name: text: derivation {
    inherit name; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" text ];
  };
  dep = make "dep" "echo dep >\$out";
in
make "tool" "echo \${dep} >\$out"
NIX
tool=$(build_elsewhere "$work/closure.nix")
$nix copy --from "$source" --to "$cache" "$tool"
printf '%s\n' "$dep" >"$work/dep"
printf '%s\n' "$tool" >"$work/tool"
late=$(publish late 'echo late >$out')
printf '%s\n' "$late" >"$work/late"
