//! The functions whose answers are changed, or from which the module learns which sessions there are.

use std::os::raw::c_void;

use cryptoki_sys::{
    CK_ATTRIBUTE, CK_BBOOL, CK_FALSE, CK_FLAGS, CK_NOTIFY, CK_OBJECT_HANDLE, CK_RV,
    CK_SESSION_HANDLE, CK_SLOT_ID, CK_SLOT_INFO, CK_TOKEN_INFO, CK_ULONG, CKF_TOKEN_PRESENT,
    CKF_USER_PIN_INITIALIZED, CKR_OK, CKR_SESSION_COUNT,
};

use crate::weather::{Place, through, weather};

/// Serial number of a token that was initialised again.
const NEW_SERIAL: [u8; 16] = *b"anewone000000001";

pub unsafe extern "C" fn initialize(args: *mut c_void) -> CK_RV {
    through("C_Initialize", Place::Library, |real| {
        // SAFETY: the caller's own argument.
        let answer = unsafe { real.C_Initialize?(args) };
        if answer == CKR_OK {
            weather().began_anew();
        }
        Some(answer)
    })
}

pub unsafe extern "C" fn finalize(reserved: *mut c_void) -> CK_RV {
    through("C_Finalize", Place::Library, |real| {
        // SAFETY: the caller's own argument.
        let answer = unsafe { real.C_Finalize?(reserved) };
        // What was stuck stays so until C_Initialize.
        Some(answer)
    })
}

pub unsafe extern "C" fn slot_list(
    present: CK_BBOOL,
    slots: *mut CK_SLOT_ID,
    count: *mut CK_ULONG,
) -> CK_RV {
    through("C_GetSlotList", Place::Library, |real| {
        if present != CK_FALSE && weather().is_gone() && !count.is_null() {
            // SAFETY: not null, so it points to the caller's count.
            unsafe { *count = 0 };
            return Some(CKR_OK);
        }
        // SAFETY: the caller's own arguments.
        Some(unsafe { real.C_GetSlotList?(present, slots, count) })
    })
}

pub unsafe extern "C" fn slot_info(slot: CK_SLOT_ID, info: *mut CK_SLOT_INFO) -> CK_RV {
    // An empty slot is still a slot.
    through("C_GetSlotInfo", Place::Library, |real| {
        // SAFETY: the caller's own arguments.
        let answer = unsafe { real.C_GetSlotInfo?(slot, info) };
        if answer == CKR_OK && weather().is_gone() {
            // SAFETY: the real module filled it.
            unsafe { (*info).flags &= !CKF_TOKEN_PRESENT };
        }
        Some(answer)
    })
}

pub unsafe extern "C" fn token_info(slot: CK_SLOT_ID, info: *mut CK_TOKEN_INFO) -> CK_RV {
    through("C_GetTokenInfo", Place::Slot, |real| {
        // SAFETY: the caller's own arguments.
        let answer = unsafe { real.C_GetTokenInfo?(slot, info) };
        if answer != CKR_OK {
            return Some(answer);
        }
        // SAFETY: the real module filled it, and nobody else has it until we return.
        let info = unsafe { &mut *info };
        let weather = weather();
        if let Some(max) = weather.max_sessions() {
            (info.ulMaxSessionCount, info.ulMaxRwSessionCount) = (max, max);
            (info.ulSessionCount, info.ulRwSessionCount) = (weather.sessions(), weather.sessions());
        }
        if weather.is_replaced() {
            info.serialNumber = NEW_SERIAL;
            info.flags &= !CKF_USER_PIN_INITIALIZED;
        }
        Some(answer)
    })
}

pub unsafe extern "C" fn open_session(
    slot: CK_SLOT_ID,
    flags: CK_FLAGS,
    application: *mut c_void,
    notify: CK_NOTIFY,
    session: *mut CK_SESSION_HANDLE,
) -> CK_RV {
    through("C_OpenSession", Place::Slot, |real| {
        // Held over the call: nobody else may take the last place meanwhile.
        let mut weather = weather();
        if weather
            .max_sessions()
            .is_some_and(|max| weather.sessions() >= max)
        {
            return Some(CKR_SESSION_COUNT);
        }
        // SAFETY: the caller's own arguments.
        let answer = unsafe { real.C_OpenSession?(slot, flags, application, notify, session) };
        if answer == CKR_OK {
            // SAFETY: the real module wrote the handle there.
            weather.opened(unsafe { *session }, slot);
        }
        Some(answer)
    })
}

pub unsafe extern "C" fn close_session(session: CK_SESSION_HANDLE) -> CK_RV {
    through("C_CloseSession", Place::Session(session), |real| {
        // SAFETY: a number.
        let answer = unsafe { real.C_CloseSession?(session) };
        weather().closed(session);
        Some(answer)
    })
}

pub unsafe extern "C" fn close_all_sessions(slot: CK_SLOT_ID) -> CK_RV {
    through("C_CloseAllSessions", Place::Slot, |real| {
        // SAFETY: a number.
        let answer = unsafe { real.C_CloseAllSessions?(slot) };
        weather().closed_all(slot);
        Some(answer)
    })
}

/// Where searches find nothing. A token that vanished looks like an empty one: real modules answer CKR_OK.
fn finds_nothing() -> bool {
    let weather = weather();
    weather.is_gone() || weather.is_replaced()
}

/// Searches are not refused while the token is gone, so they are the library's business here.
fn place(session: CK_SESSION_HANDLE) -> Place {
    if finds_nothing() {
        Place::Library
    } else {
        Place::Session(session)
    }
}

pub unsafe extern "C" fn find_init(
    session: CK_SESSION_HANDLE,
    template: *mut CK_ATTRIBUTE,
    count: CK_ULONG,
) -> CK_RV {
    through("C_FindObjectsInit", place(session), |real| {
        if finds_nothing() {
            return Some(CKR_OK);
        }
        // SAFETY: the caller's own arguments.
        Some(unsafe { real.C_FindObjectsInit?(session, template, count) })
    })
}

pub unsafe extern "C" fn find(
    session: CK_SESSION_HANDLE,
    objects: *mut CK_OBJECT_HANDLE,
    room: CK_ULONG,
    count: *mut CK_ULONG,
) -> CK_RV {
    through("C_FindObjects", place(session), |real| {
        if finds_nothing() && !count.is_null() {
            // SAFETY: not null, so it points to the caller's count.
            unsafe { *count = 0 };
            return Some(CKR_OK);
        }
        // SAFETY: the caller's own arguments.
        Some(unsafe { real.C_FindObjects?(session, objects, room, count) })
    })
}

pub unsafe extern "C" fn find_final(session: CK_SESSION_HANDLE) -> CK_RV {
    through("C_FindObjectsFinal", place(session), |real| {
        if finds_nothing() {
            return Some(CKR_OK);
        }
        // SAFETY: a number.
        Some(unsafe { real.C_FindObjectsFinal?(session) })
    })
}
