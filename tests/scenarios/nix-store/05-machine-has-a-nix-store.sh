# On NixOS all of it is there, by services.castore-fs.nixStore. Elsewhere it is arranged here.
. "$SCENARIOS/nix-store/files/kit.sh"
install -m 600 "$SCENARIOS/nix-store/files/secret-key" "$work/secret-key"
if ! test -e /run/current-system; then
    cp "$SCENARIOS/nix-store/files/config.toml" /etc/castore-fs/config.toml
    cp "$SCENARIOS/nix-store/files/castore-fs-nix-store.socket" /run/systemd/system/
    systemctl daemon-reload
    systemctl restart castore-fs-nix-store.socket
    systemctl restart castore-fs.service
    make_nix_store
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
tool=$(NIX_REMOTE=$source in_sandbox nix-build --no-out-link "$work/closure.nix")
$nix copy --from "$source" --to "$cache" "$tool"
printf '%s\n' "$dep" >"$work/dep"
printf '%s\n' "$tool" >"$work/tool"
late=$(publish late 'echo late >$out')
printf '%s\n' "$late" >"$work/late"
