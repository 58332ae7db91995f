# Where there is no Nix, a folder like its store, on a file system that an overlay can have for its
# upper layer, and the module's unit.
. "$SCENARIOS/kit.sh"
if ! test -d /nix/store; then
    mkdir -p /nix
    mount -t tmpfs tmpfs /nix
    mkdir -p /nix/store/22222222222222222222222222222222-own
    printf 'own\n' >/nix/store/22222222222222222222222222222222-own/file
    mount --bind /nix/store /nix/store
    mount -o remount,bind,ro /nix/store
    overlay="/bin/sh $SCENARIOS/below-nix-store/files/nix-store-overlay.sh"
    cat >/run/systemd/system/castore-fs-nix-store.service <<UNIT
[Unit]
Wants=castore-fs.service
After=castore-fs.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=$overlay up /run/castore-fs-lower
ExecStop=$overlay down
UNIT
    systemctl daemon-reload
    systemctl start castore-fs-nix-store.service
fi
