//! A PKCS#11 2.40 module that stands before a real one: it forwards every call, and fails or delays those that a script
//! names. For tests and for rehearsing an outage; `docs/rehearsals.md` says how. It knows no secrets: what passes
//! through it is neither kept nor written down.
//!
//! - `script`: what can be written into a script.
//! - `weather`: which call meets what, and what the module remembers about sessions.
//! - `list`: one forwarding function per PKCS#11 function.
//! - `edited`: the functions whose answers are changed, not only their codes.
//! - `real`: the module behind this one.
//! - `codes`: names and numbers of return codes.

mod codes;
mod edited;
mod list;
mod real;
mod script;
mod weather;

use cryptoki_sys::{CK_FUNCTION_LIST, CK_RV, CKR_ARGUMENTS_BAD, CKR_LIBRARY_LOAD_FAILED, CKR_OK};

/// Names the real module. Required.
pub const MODULE: &str = "PKCS11_FAULT_MODULE";
/// Names the script, which is looked at with every call. Required; it must exist, and may be empty.
pub const SCRIPT: &str = "PKCS11_FAULT_SCRIPT";
/// Names a file that gets a line for every call that the script answered, and for every C_Initialize,
/// C_Finalize, C_Login and C_Logout. Optional.
pub const LOG: &str = "PKCS11_FAULT_LOG";

/// The one symbol that a PKCS#11 module must have.
///
/// # Safety
/// `list` is null or points to a place for one pointer, as PKCS#11 says.
#[unsafe(no_mangle)]
#[allow(non_snake_case, reason = "PKCS#11 names it")]
pub unsafe extern "C" fn C_GetFunctionList(list: *mut *mut CK_FUNCTION_LIST) -> CK_RV {
    if list.is_null() {
        return CKR_ARGUMENTS_BAD;
    }
    if let Err(why) = real::load() {
        eprintln!("pkcs11-fault: {why}");
        return CKR_LIBRARY_LOAD_FAILED;
    }
    // SAFETY: not null, and the caller has room for a pointer there. The list is static; callers only read it.
    unsafe { *list = (&raw const list::OURS).cast_mut() };
    CKR_OK
}
