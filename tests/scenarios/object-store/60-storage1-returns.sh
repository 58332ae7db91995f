systemctl start garage.service
