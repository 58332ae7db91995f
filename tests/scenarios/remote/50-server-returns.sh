systemctl start castore-fs.service
