//! Extended attributes, read like by a program.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The value of the attribute `name`, or an errno.
pub fn xattr(path: &Path, name: &str) -> Result<String, i32> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let name = CString::new(name).unwrap();
    let mut value = [0u8; 256];
    // SAFETY: both strings end in NUL, and the buffer has the stated length.
    let length = unsafe {
        libc::lgetxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    match usize::try_from(length) {
        Ok(length) => Ok(String::from_utf8(value[..length].to_vec()).unwrap()),
        Err(_) => Err(std::io::Error::last_os_error().raw_os_error().unwrap()),
    }
}
