# Starts this machine's node of Garage, and introduces it to the others. On NixOS it runs already.
if ! systemctl cat garage.service >/dev/null 2>&1; then
    cp "$SCENARIOS/object-store/files/garage.toml" /etc/garage.toml
    printf '[Service]\nExecStart=/usr/bin/garage server\n' >/run/systemd/system/garage.service
    systemctl daemon-reload
fi
systemctl start garage.service
within 60 garage node id -q
garage node id -q | cut -d @ -f 1 >"$SHARED/$(uname -n)"
