/* session.c: walking over framed messages, for packets that overlap what was delivered. */
#include "session_inl.h"

int xdsi_session_walk(uint32_t framing, const uint8_t *data, uint32_t len, uint32_t n)
{
    uint32_t at = 0;

    for (uint32_t i = 0; i < n; i++) {
        if (len - at < 2)
            return XDS_ETRUNC;
        uint32_t step;
        switch (framing) {
        case XDS_FRAMING_U16BE:
            step = 2u + xdsi_be16(data + at);
            break;
        case XDS_FRAMING_U16LE:
            step = 2u + xdsi_le16(data + at);
            break;
        case XDS_FRAMING_SBE: /* counts itself */
            step = xdsi_le16(data + at);
            if (step < 2)
                return XDS_EMALFORMED;
            break;
        default:
            return XDS_EMALFORMED;
        }
        if (step > len - at)
            return XDS_ETRUNC;
        at += step;
    }
    return (int)at;
}
