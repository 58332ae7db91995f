systemctl kill --signal=SIGKILL garage.service
systemctl stop garage.service
