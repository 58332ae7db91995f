systemctl mask --runtime castore-fs.service
systemctl kill --signal=SIGKILL castore-fs.service
! systemctl is-active castore-fs.service
