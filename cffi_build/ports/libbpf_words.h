/* libbpf_words.h: what libbpf has to say goes into xds_filter_message(), not onto the terminal. */
#ifndef XDSI_LIBBPF_WORDS_H
#define XDSI_LIBBPF_WORDS_H

#include <stdarg.h>

/* Forget the last words, keep the next: before every call that may make libbpf speak. */
void xdsi_listen_to_libbpf(void);

/* Keep a warning as the words, if they are the first. Returns 0. */
int xdsi_keep_words(const char *format, va_list args);

#endif
