//! A hint to the processor.
#![allow(unsafe_code)]

/// Asks the processor to fetch the memory of a value that will be needed soon, without waiting for it.
pub fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint; every x86-64 processor has it, and the address is one of a value.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}
