//! The module behind this one: loaded once, never unloaded, because vendors' libraries keep threads.

use std::{env, sync::OnceLock};

use cryptoki_sys::{CK_FUNCTION_LIST, CK_RV, CKR_OK};
use libloading::Library;

use crate::MODULE;

static REAL: OnceLock<Result<Loaded, String>> = OnceLock::new();

struct Loaded {
    list: CK_FUNCTION_LIST,
    _library: Library,
}

/// Loads it at the first call. Errors: a sentence for the person at the keyboard.
pub fn load() -> Result<(), &'static str> {
    let loaded = REAL.get_or_init(open);
    loaded.as_ref().map(|_| ()).map_err(String::as_str)
}

/// Its functions; None before `load`, or when that failed.
pub fn list() -> Option<&'static CK_FUNCTION_LIST> {
    let loaded = REAL.get()?.as_ref().ok()?;
    Some(&loaded.list)
}

fn open() -> Result<Loaded, String> {
    let path = env::var_os(MODULE).ok_or(format!("{MODULE} must name the real PKCS#11 module"))?;
    // SAFETY: loading runs the library's constructors. The operator named it to be loaded into this process.
    let library = unsafe { Library::new(&path) }.map_err(|e| format!("{}: {e}", path.display()))?;
    type GetFunctionList = unsafe extern "C" fn(*mut *mut CK_FUNCTION_LIST) -> CK_RV;
    // SAFETY: the type is that of C_GetFunctionList in every version of PKCS#11.
    let get = unsafe { library.get::<GetFunctionList>(b"C_GetFunctionList\0") };
    let get = get.map_err(|e| format!("{} is no PKCS#11 module: {e}", path.display()))?;
    let mut list = std::ptr::null_mut();
    // SAFETY: `list` has room for the pointer.
    let rv = unsafe { get(&mut list) };
    if rv != CKR_OK || list.is_null() {
        return Err(format!("{} gives no function list", path.display()));
    }
    Ok(Loaded {
        // SAFETY: the module answered CKR_OK, so this is its list, which lives as long as the library. Lists of
        // later versions begin with the fields of 2.40.
        list: unsafe { *list },
        _library: library,
    })
}
