//! One function per PKCS#11 function: it asks the weather, then the real module.

#![allow(
    non_snake_case,
    reason = "the functions have the names that PKCS#11 gives them"
)]

use std::os::raw::c_void;

use cryptoki_sys::{
    CK_ATTRIBUTE, CK_FUNCTION_LIST, CK_INFO, CK_MECHANISM, CK_MECHANISM_INFO, CK_OBJECT_HANDLE,
    CK_RV, CK_SESSION_HANDLE, CK_SESSION_INFO, CK_SLOT_ID, CK_ULONG, CK_VERSION,
};

use crate::{
    edited,
    weather::{Place, through},
};

type Bytes = *mut u8;
type Count = CK_ULONG;
type Mechanism = *mut CK_MECHANISM;
type Object = CK_OBJECT_HANDLE;
type Out<T> = *mut T;
type Template = *mut CK_ATTRIBUTE;

/// Functions that are forwarded as they are. The names of the arguments do not matter here: they are passed on.
macro_rules! forwarded {
    (library { $($library:ident($($la:ident: $lt:ty),*);)* }
     slot { $($slot:ident($($oa:ident: $ot:ty),*);)* }
     session { $($session:ident($($sa:ident: $st:ty),*);)* }) => {
        $(
            unsafe extern "C" fn $library($($la: $lt),*) -> CK_RV {
                through(stringify!($library), Place::Library, |real| {
                    // SAFETY: the caller's own arguments, which keep to PKCS#11's contract or break it there as here.
                    Some(unsafe { real.$library?($($la),*) })
                })
            }
        )*
        $(
            unsafe extern "C" fn $slot(slot: CK_SLOT_ID, $($oa: $ot),*) -> CK_RV {
                through(stringify!($slot), Place::Slot, |real| {
                    // SAFETY: as above.
                    Some(unsafe { real.$slot?(slot, $($oa),*) })
                })
            }
        )*
        $(
            unsafe extern "C" fn $session(session: CK_SESSION_HANDLE, $($sa: $st),*) -> CK_RV {
                through(stringify!($session), Place::Session(session), |real| {
                    // SAFETY: as above.
                    Some(unsafe { real.$session?(session, $($sa),*) })
                })
            }
        )*

        /// What C_GetFunctionList gives.
        pub static OURS: CK_FUNCTION_LIST = CK_FUNCTION_LIST {
            version: CK_VERSION { major: 2, minor: 40 },
            C_GetFunctionList: Some(crate::C_GetFunctionList),
            C_Initialize: Some(edited::initialize),
            C_Finalize: Some(edited::finalize),
            C_GetSlotList: Some(edited::slot_list),
            C_GetSlotInfo: Some(edited::slot_info),
            C_GetTokenInfo: Some(edited::token_info),
            C_OpenSession: Some(edited::open_session),
            C_CloseSession: Some(edited::close_session),
            C_CloseAllSessions: Some(edited::close_all_sessions),
            C_FindObjectsInit: Some(edited::find_init),
            C_FindObjects: Some(edited::find),
            C_FindObjectsFinal: Some(edited::find_final),
            $($library: Some($library),)*
            $($slot: Some($slot),)*
            $($session: Some($session),)*
        };
    };
}

forwarded! {
    library {
        C_GetInfo(a: Out<CK_INFO>);
        C_WaitForSlotEvent(a: Count, b: Out<Count>, c: *mut c_void);
    }
    slot {
        C_GetMechanismList(a: Out<Count>, b: Out<Count>);
        C_GetMechanismInfo(a: Count, b: Out<CK_MECHANISM_INFO>);
        C_InitToken(a: Bytes, b: Count, c: Bytes);
    }
    session {
        C_InitPIN(a: Bytes, b: Count);
        C_SetPIN(a: Bytes, b: Count, c: Bytes, d: Count);
        C_GetSessionInfo(a: Out<CK_SESSION_INFO>);
        C_GetOperationState(a: Bytes, b: Out<Count>);
        C_SetOperationState(a: Bytes, b: Count, c: Object, d: Object);
        C_Login(a: Count, b: Bytes, c: Count);
        C_Logout();
        C_CreateObject(a: Template, b: Count, c: Out<Object>);
        C_CopyObject(a: Object, b: Template, c: Count, d: Out<Object>);
        C_DestroyObject(a: Object);
        C_GetObjectSize(a: Object, b: Out<Count>);
        C_GetAttributeValue(a: Object, b: Template, c: Count);
        C_SetAttributeValue(a: Object, b: Template, c: Count);
        C_EncryptInit(a: Mechanism, b: Object);
        C_Encrypt(a: Bytes, b: Count, c: Bytes, d: Out<Count>);
        C_EncryptUpdate(a: Bytes, b: Count, c: Bytes, d: Out<Count>);
        C_EncryptFinal(a: Bytes, b: Out<Count>);
        C_DecryptInit(a: Mechanism, b: Object);
        C_Decrypt(a: Bytes, b: Count, c: Bytes, d: Out<Count>);
        C_DecryptUpdate(a: Bytes, b: Count, c: Bytes, d: Out<Count>);
        C_DecryptFinal(a: Bytes, b: Out<Count>);
        C_DigestInit(a: Mechanism);
        C_Digest(a: Bytes, b: Count, c: Bytes, d: Out<Count>);
        C_DigestUpdate(a: Bytes, b: Count);
        C_DigestKey(a: Object);
        C_DigestFinal(a: Bytes, b: Out<Count>);
        C_SignInit(a: Mechanism, b: Object);
        C_Sign(a: Bytes, b: Count, c: Bytes, d: Out<Count>);
        C_SignUpdate(a: Bytes, b: Count);
        C_SignFinal(a: Bytes, b: Out<Count>);
        C_SignRecoverInit(a: Mechanism, b: Object);
        C_SignRecover(a: Bytes, b: Count, c: Bytes, d: Out<Count>);
        C_VerifyInit(a: Mechanism, b: Object);
        C_Verify(a: Bytes, b: Count, c: Bytes, d: Count);
        C_VerifyUpdate(a: Bytes, b: Count);
        C_VerifyFinal(a: Bytes, b: Count);
        C_VerifyRecoverInit(a: Mechanism, b: Object);
        C_VerifyRecover(a: Bytes, b: Count, c: Bytes, d: Out<Count>);
        C_DigestEncryptUpdate(a: Bytes, b: Count, c: Bytes, d: Out<Count>);
        C_DecryptDigestUpdate(a: Bytes, b: Count, c: Bytes, d: Out<Count>);
        C_SignEncryptUpdate(a: Bytes, b: Count, c: Bytes, d: Out<Count>);
        C_DecryptVerifyUpdate(a: Bytes, b: Count, c: Bytes, d: Out<Count>);
        C_GenerateKey(a: Mechanism, b: Template, c: Count, d: Out<Object>);
        C_GenerateKeyPair(a: Mechanism, b: Template, c: Count, d: Template, e: Count, f: Out<Object>, g: Out<Object>);
        C_WrapKey(a: Mechanism, b: Object, c: Object, d: Bytes, e: Out<Count>);
        C_UnwrapKey(a: Mechanism, b: Object, c: Bytes, d: Count, e: Template, f: Count, g: Out<Object>);
        C_DeriveKey(a: Mechanism, b: Object, c: Template, d: Count, e: Out<Object>);
        C_SeedRandom(a: Bytes, b: Count);
        C_GenerateRandom(a: Bytes, b: Count);
        C_GetFunctionStatus();
        C_CancelFunction();
    }
}
