systemctl mask --runtime castore-fs.service
systemctl kill --signal=SIGKILL castore-fs.service
systemctl stop castore-fs.service
