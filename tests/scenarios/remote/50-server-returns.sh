systemctl unmask --runtime castore-fs.service
systemctl start castore-fs.service
